"""What a detector would have done on recordings: alarms on undrifted people, and what it finds of known drifts.

The protocol is that of the detector's notes: a person's trials are cut into bouts of 15 to 45 s in random order; the
first 60 % calibrate, the others are played twice as normal, and then, in another order, with a drift. *strict*: the
drifted part has no bout of the calibration, and neither the classifier nor the profile has seen the person. *dev*: the
drifted part has all bouts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.random import Generator

from schemas.activity import ROTATION, SAMPLE_RATE_HZ
from schemas.settings import Settings
from streams.confirmed import Confirmed
from streams.detectors import kind_of
from streams.drift import Change, Kind
from streams.inject import AXES, Drift, apply
from streams.measures import WIDTH
from streams.motionsense import recordings
from streams.profile import Profile
from streams.quality import Degraded
from streams.recording import BOUT_SECONDS, SHORTEST_BOUT_SECONDS, TRIMMED_SECONDS, Recording, shuffled_apart, spans
from streams.windows import NO_LABEL, Ints, Readings, Windows, cut, empty_readings, no_windows
from workers.reference import make_profile
from workers.training import bouts_of

Protocol = Literal["strict", "dev"]

CALIBRATION_SHARE: Final = 0.6
START_TS: Final = 1.7e9
DRIFTS: Final[tuple[Drift, ...]] = (
    Drift("rotate", 20, 0),
    Drift("rotate", 45, 0),
    Drift("rotate", 90, 0),
    Drift("bias", 0.1, 0),
    Drift("bias", 0.3, 0),
    Drift("gain", 1.5, 0),
    Drift("noise", 0.1, 0),
    Drift("stuck", 0, 0),
    Drift("ramp", 0.3, 0),
    Drift("subject", 0, 0),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One device's life: calibration, normal, drift. kind: as in the table; from_ts: end of the calibration at the
    latest; drift_ts: when it drifts. readings and windows: all of it; windows without measures.
    """

    person: str
    kind: str
    from_ts: float
    drift_ts: float
    readings: Readings
    windows: Windows


@dataclass(frozen=True, slots=True)
class Seen:
    """What a detector did in a run. false_alarms: before the drift; delay_s: until the first alarm after it, or None.

    estimate: what that alarm's test estimated.
    """

    person: str
    kind: str
    hours: float
    false_alarms: int
    false_faults: int
    delay_s: float | None
    estimate: dict[str, float]


def label_of(drift: Drift) -> str:
    """`rotate 20`."""
    return f"{drift.kind} {drift.amount:g}" if drift.amount else drift.kind


def bouts(recording: Recording, rng: Generator) -> list[tuple[int, int]]:
    """First row and row after the last of a recording's bouts, in its order (as `shuffled_bouts` cuts them)."""
    found = []
    trim, shortest = round(TRIMMED_SECONDS * SAMPLE_RATE_HZ), round(SHORTEST_BOUT_SECONDS * SAMPLE_RATE_HZ)
    for first, last in spans(recording.trials, recording.labels):
        at, end = first + trim, last - trim
        while end - at >= shortest:
            length = min(end - at, max(shortest, round(rng.uniform(*BOUT_SECONDS) * SAMPLE_RATE_HZ)))
            found.append((at, at + length))
            at += length
    return found


def _shuffled(recording: Recording, chosen: Sequence[tuple[int, int]], rng: Generator) -> list[tuple[int, int]]:
    return [chosen[i] for i in shuffled_apart([int(recording.labels[first]) for first, _ in chosen], rng)]


def _played(recording: Recording, order: Sequence[tuple[int, int]]) -> Recording:
    rows = np.concatenate([np.arange(*bout) for bout in order])
    return replace(recording.chosen(rows), ts=START_TS + np.arange(len(rows)) / SAMPLE_RATE_HZ)


def run_of(
    recording: Recording,
    drift: Drift,
    seed: int,
    other: Recording,
    protocol: Protocol,
    *,
    rotation_rate: bool = True,
    undrifted: bool = False,
) -> Run:
    """One run; other: who takes over in a `subject` drift. undrifted: the same bouts, had nothing drifted."""
    known = (i for i, each in enumerate(DRIFTS) if (each.kind, each.amount) == (drift.kind, drift.amount))
    number = next(known, len(DRIFTS))
    rng = np.random.default_rng([seed, number, *recording.person.id.encode()])
    order = _shuffled(recording, bouts(recording, rng), rng)
    lengths = np.cumsum([last - first for first, last in order])
    count = int((np.concatenate([[0], lengths[:-1]]) < CALIBRATION_SHARE * lengths[-1]).sum())
    rest = order[count:]
    normal = [*rest, *_shuffled(recording, rest, rng)]
    drifted = _shuffled(recording, rest if protocol == "strict" else order, rng)
    whole = _played(recording, [*order[:count], *normal, *drifted])
    at = (lengths[count - 1] + sum(last - first for first, last in normal)) / SAMPLE_RATE_HZ
    axis = AXES[int(rng.integers(3))] if drift.kind in ("stuck", "bias", "ramp") else None
    placed = replace(drift, at_seconds=at, axis=axis)
    taking_over = _played(other, _shuffled(other, bouts(other, rng), rng)) if drift.kind == "subject" else None
    whole = whole if undrifted else apply(whole, placed, rng, taking_over)
    if not rotation_rate:
        values = whole.values.copy()
        values[:, ROTATION] = np.nan
        whole = replace(whole, values=values)
    readings = Readings(whole.ts, whole.values, whole.labels, np.arange(len(whole)))
    return Run(
        recording.person.id,
        label_of(drift),
        START_TS + lengths[count - 1] / SAMPLE_RATE_HZ,
        START_TS + at,
        readings,
        cut(readings)[0],
    )


def runs(
    people: Sequence[Recording], seeds: Sequence[int], protocol: Protocol, *, rotation_rate: bool = True
) -> Iterator[Run]:
    """Every drift of every person, once a seed."""
    for seed in seeds:
        for number, person in enumerate(people):
            other = people[(number + 1 + seed) % len(people)]
            if other is person and len(people) > 1:
                other = people[(number + 1) % len(people)]
            for drift in DRIFTS:
                yield run_of(person, drift, seed, other, protocol, rotation_rate=rotation_rate)


def reference_profile(people: Sequence[Recording], seed: int) -> Profile:
    """What the retrain job would make of these people's recordings, bouts cut as in a run."""
    rng = np.random.default_rng(seed)
    parts, devices = [], []
    for person in people:
        whole = _played(person, _shuffled(person, bouts(person, rng), rng))
        windows = cut(Readings(whole.ts, whole.values, whole.labels, np.arange(len(whole))))[0]
        parts.append(windows.chosen(windows.labels != NO_LABEL))
        devices.append(np.repeat(np.array([person.device]), len(parts[-1])))
    values = np.concatenate([part.values for part in parts])
    labels: Ints = np.concatenate([part.labels for part in parts])
    names = np.concatenate(devices)
    numbers = bouts_of(labels, names, np.concatenate([part.start for part in parts]))
    return make_profile(values, labels, names, numbers, seed)


def measured(kind: Kind, run: Run) -> Run:
    """The run with its windows' measures, and no longer with their values."""
    if kind.measure is None:
        return replace(run, windows=no_windows())
    windows = run.windows
    parts = [kind.measure(windows.values[begin : begin + 256]) for begin in range(0, len(windows), 256)]
    light = replace(windows, values=np.empty((len(windows), 0, 0)), measures=np.concatenate(parts))
    return replace(run, windows=light, readings=empty_readings())


def play(kind: Kind, run: Run, chunk: int = 10**9) -> list[Change | Degraded]:
    """All that a fresh detector says to a measured run."""
    detector = kind()
    if kind.measure is None:
        return detector.observe(run.readings, run.windows)
    found: list[Change | Degraded] = []
    for begin in range(0, len(run.windows), chunk):
        found += detector.observe(run.readings, run.windows.chosen(slice(begin, begin + chunk)))
    return found


def judge_run(found: Sequence[Change | Degraded], run: Run, calibration_s: float) -> Seen:
    """Alarms before the drift, and how soon after it the first one came.

    Changes at one window are one alarm. A channel that no longer measures is found when that is said: `stuck` counts
    `QualityDegraded`, on which nothing is retrained.
    """
    begun = min(run.from_ts, START_TS + calibration_s)
    alarms = sorted({item.ts for item in found if isinstance(item, Change) and item.ts >= begun})
    faults = sorted({item.ts for item in found if isinstance(item, Degraded) and not item.ended})
    hits = [ts for ts in sorted(alarms + (faults if run.kind == "stuck" else [])) if ts >= run.drift_ts]
    told = [item for item in found if isinstance(item, Change) and hits and item.ts == hits[0]]
    return Seen(
        run.person,
        run.kind,
        (run.drift_ts - begun) / 3600,
        sum(ts < run.drift_ts for ts in alarms),
        sum(ts < run.drift_ts for ts in faults),
        hits[0] - run.drift_ts if hits else None,
        (told[0].estimate or {}) if told else {},
    )


@dataclass(frozen=True, slots=True)
class Figures:
    """False alarms per hour with a 95 % interval by person bootstrap, and what was found of each kind."""

    false_alarms_per_hour: float
    ci95: tuple[float, float]
    normal_hours: float
    false_alarms: int
    false_faults: int
    rows: list[dict[str, float | int | str | None]]


def figures(seen: Sequence[Seen]) -> Figures:
    """The table. The interval draws people, not alarms: one person's alarms come together."""
    people = sorted({item.person for item in seen})
    counts = np.array([sum(item.false_alarms for item in seen if item.person == person) for person in people])
    hours = np.array([sum(item.hours for item in seen if item.person == person) for person in people])
    draws = np.random.default_rng(0).integers(len(people), size=(4000, len(people)))
    low, high = np.percentile(counts[draws].sum(1) / hours[draws].sum(1), [2.5, 97.5])
    rows: list[dict[str, float | int | str | None]] = []
    for kind in dict.fromkeys(item.kind for item in seen):
        mine = [item for item in seen if item.kind == kind]
        delays = [item.delay_s for item in mine if item.delay_s is not None]
        name = {"gain": "gain", "rotate": "rotation_deg"}.get(kind.split()[0], "")
        estimates = [item.estimate[name] for item in mine if name in item.estimate]
        rows.append(
            {
                "kind": kind,
                "runs": len(mine),
                "missed": 1 - len(delays) / len(mine),
                "median_delay_s": float(np.median(delays)) if delays else None,
                "p90_delay_s": float(np.percentile(delays, 90)) if delays else None,
                "estimate": float(np.median(estimates))
                if estimates and kind.split()[0] in ("gain", "rotate")
                else None,
            }
        )
    total = float(hours.sum())
    return Figures(
        float(counts.sum()) / total,
        (float(low), float(high)),
        total,
        int(counts.sum()),
        sum(item.false_faults for item in seen),
        rows,
    )


def accuracy(measured_runs: Sequence[Run]) -> dict[str, float]:
    """How often the classifier is right on the undrifted windows of each person."""
    right: dict[str, list[float]] = {}
    for run in measured_runs:
        windows = run.windows
        assert windows.measures is not None
        rows = (windows.labels != NO_LABEL) & (windows.end < run.drift_ts)
        hit = windows.measures[rows, WIDTH:].argmax(1) == windows.labels[rows]
        right.setdefault(run.person, []).append(float(hit.mean()))
    return {person: float(np.mean(shares)) for person, shares in right.items()}


def report(data: Path, reference: Sequence[int], subjects: Sequence[int], settings: Settings) -> dict[str, Any]:
    """What the settings' detector does to the monitored subjects, strict, one seed; raises as the reader does.

    The profile is that of the reference subjects, as a first model trained on them would bring it.
    """
    people = {each.device: each for each in recordings(data, {*reference, *subjects})}
    learned = [people[f"phone-{number:02d}"] for number in reference]
    kind = kind_of(settings)
    if isinstance(kind, Confirmed):
        kind.adopt("backtest", reference_profile(learned, settings.training_seed))
    monitored = [people[f"phone-{number:02d}"] for number in subjects]
    whole = (measured(kind, run) for run in runs(monitored, [settings.training_seed], "strict"))
    found = figures([judge_run(play(kind, run), run, settings.calibration_seconds) for run in whole])
    return {
        "false_alarms_per_hour": found.false_alarms_per_hour,
        "false_alarms_ci95": list(found.ci95),
        "normal_hours": found.normal_hours,
        "rows": found.rows,
    }
