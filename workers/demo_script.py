"""What the demo plays: several people, one of whose devices drifts, and readings that only the endpoint is shown."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from schemas.activity import ACTIVITIES, SAMPLE_RATE_HZ
from schemas.errors import UserError
from streams.inject import apply, parse_drift
from streams.motionsense import recordings
from streams.recording import Recording, shuffled_bouts
from streams.simulator import simulate

DEVICES: Final = 8
LEARN_S: Final = 400.0
DRIFT_S: Final = 520.0
# Of the drifted readings these come after the redeployment: a verdict on six activities wants some bouts of each.
AFTER_S: Final = 110.0
ASKED_S: Final = 180.0
SEED: Final = 7
# Chosen because it hurts every candidate, on people and on the simulator, and because labels heal it; a turned phone
# or a gain would not: the models are trained on turned copies and hardly mind.
DRIFT: Final = "noise:0.3"
BOUT_S: Final = (12.0, 30.0)


@dataclass(frozen=True, slots=True)
class Script:
    """What is played. learn: everyone, for the first model; drifting: everyone, one device drifted; after: what
    follows, once a better model serves; asked, drifted: the device's readings that only the endpoint is shown until
    then, as they are and as the drift makes them.
    """

    device: str
    learn: list[Recording]
    drifting: list[Recording]
    after: list[Recording]
    asked: Recording
    drifted: Recording


def write_script(data: Path | None) -> Script:
    """The readings of the demo, the same each time; event time ends about now."""
    rng = np.random.default_rng(SEED)
    total = LEARN_S + DRIFT_S + ASKED_S
    start = float(int(time.time() - total))
    if data is None:
        mix = dict.fromkeys(ACTIVITIES, 1.0)
        played = simulate(DEVICES, total, SEED, start, bout_seconds=BOUT_S, mix=mix)
    else:
        played = [shuffled_bouts(each, rng) for each in recordings(data, None, start)]
        played = [each for each in played if len(each) >= 0.97 * total * SAMPLE_RATE_HZ][:DEVICES]
        if len(played) < 4:
            raise UserError(
                f"{data}: the demo needs 4 subjects with {total / 60:.0f} minutes each, found {len(played)}"
            )
    learn = [each.between(0, LEARN_S) for each in played]
    later = [each.between(LEARN_S, LEARN_S + DRIFT_S) for each in played]
    chosen = _drifting_device(played)
    asked = played[chosen].between(LEARN_S + DRIFT_S, total)
    drift = parse_drift(f"{DRIFT}@0")
    # The same seed, so that what is asked has drifted exactly as what was played.
    later[chosen] = apply(later[chosen], drift, np.random.default_rng(SEED))
    drifted = apply(asked, drift, np.random.default_rng(SEED))
    drifting = [each.between(0, DRIFT_S - AFTER_S) for each in later]
    after = [each.between(DRIFT_S - AFTER_S) for each in later]
    return Script(played[chosen].device, learn, drifting, after, asked, drifted)


def _drifting_device(played: list[Recording]) -> int:
    """The one with the most even mix of activities after the first model: all of them can then be healed."""
    shares = [
        min(int((each.between(LEARN_S, LEARN_S + DRIFT_S).labels == code).sum()) for code in range(len(ACTIVITIES)))
        for each in played
    ]
    return int(np.argmax(shares))


def in_words(drift: str) -> str:
    """What has happened to the device, for people."""
    kind, amount = drift.split(":")
    return {
        "rotate": f"it is carried differently, turned by {amount}°",
        "gain": f"its accelerometer now reads {amount} times too much",
        "noise": f"its accelerometer is noisy by {amount} g",
        "bias": f"its accelerometer is off by {amount} g",
        "stuck": f"its accelerometer's {amount} axis is stuck",
    }[kind]
