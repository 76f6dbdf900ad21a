"""Why a device's readings have drifted, as far as the evidence goes, before a training is paid for.

A sensor's fault is known before any reading is read (`workers.controller`); a changed mix of activities is no drift of
the model's; what else there is may be learned: a new device or person, another way to carry it, another sensor, or a
model that errs where nothing else explains it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from schemas.activity import ACTIVITIES
from schemas.events import DriftDetected
from streams.windows import Ints

Cause = Literal["changed-mix", "new-device", "carrying", "sensor", "model-error", "unknown"]

MIX_MOVED: Final = 0.25  # of the windows in other activities than before; 5 minutes of one person move .1 to .2
TURNED_DEG: Final = 10.0
GAINED: Final = 0.1


@dataclass(frozen=True, slots=True)
class Triage:
    """The cause that is held most likely, in a sentence, with its evidence."""

    cause: Cause
    detail: str
    fell: float = 0.0  # how much less often the champion names an activity right
    numbers: dict[str, float] = field(default_factory=dict)


def mix(labels: Ints) -> dict[str, float]:
    """Share of each activity."""
    counts = np.bincount(labels, minlength=len(ACTIVITIES)) / max(len(labels), 1)
    return {name: float(share) for name, share in zip(ACTIVITIES, counts, strict=True)}


def moved(before: Ints, after: Ints) -> float:
    """Total variation between two mixes of activities, 0 … 1."""
    old, new = mix(before), mix(after)
    return sum(abs(old[name] - new[name]) for name in ACTIVITIES) / 2


def recall(labels: Ints, answers: Ints) -> dict[int, float]:
    """Share of each activity's windows that were named right: the same whatever the mix."""
    return {int(code): float((answers[labels == code] == code).mean()) for code in np.unique(labels)}


def triage(
    drifts: Sequence[DriftDetected],
    known_devices: Sequence[str],
    before: tuple[Ints, Ints],
    after: tuple[Ints, Ints],
    margin: float,
) -> Triage:
    """The cause of the drifts. before, after: labels and the champion's answers on windows that it has not learned.

    A mix explains a drift only where the detector did not condition on the activity (`adwin`), and where the champion
    names each activity as well as before.
    """
    old, new = recall(*before), recall(*after)
    both = sorted(old.keys() & new.keys())
    # Mantel and Haenszel's difference: an activity of a few windows says little, and counts so.
    weight = np.array([1 / (1 / (before[0] == code).sum() + 1 / (after[0] == code).sum()) for code in both])
    fell = float(np.average([old[code] - new[code] for code in both], weights=weight)) if both else 0.0
    shift = moved(before[0], after[0]) if len(before[0]) else 0.0
    numbers = {"mix.moved": round(shift, 3), "recall.fell": round(fell, 4)}
    if both:
        numbers |= {"recall.before": round(float(np.average([old[code] for code in both], weights=weight)), 4)}
    if drifts and all(drift.test == "adwin" for drift in drifts) and shift >= MIX_MOVED and fell < margin:
        detail = f"{shift:.0%} of the windows are of other activities; each is named as before"
        return Triage("changed-mix", detail, fell, numbers)
    new_devices = sorted({drift.device for drift in drifts} - set(known_devices))
    if new_devices and known_devices:
        return Triage("new-device", f"no model has learned from {', '.join(new_devices[:3])}", fell, numbers)
    estimates = [drift.estimate or {} for drift in drifts]
    turned = max((abs(each.get("rotation_deg", 0.0)) for each in estimates), default=0.0)
    gain = max((abs(each.get("gain", 1.0) - 1) for each in estimates), default=0.0)
    if turned >= TURNED_DEG:
        return Triage("carrying", f"turned by about {turned:.0f}°", fell, numbers | {"rotation_deg": turned})
    if gain >= GAINED:
        return Triage("sensor", f"acceleration is off by {gain:.0%}", fell, numbers | {"gain.off": round(gain, 3)})
    if fell >= margin or any(drift.test in ("error", "confidence") for drift in drifts):
        return Triage("model-error", f"activities are named right {fell:.1%} less often than before", fell, numbers)
    return Triage("unknown", "no single cause explains it", fell, numbers)
