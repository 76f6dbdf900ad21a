"""Policies side by side over the same readings: what each would have alarmed, decided and retrained, and what it costs.

A training is counted as one that promotes, and not done: so a day of one device takes a minute.
The same file and the same policy give the same rows, but for the seconds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dotenv import dotenv_values

from schemas.errors import UserError
from schemas.events import ModelDeployed
from schemas.settings import Settings, load_settings
from schemas.topology import CURRENT_MODEL
from streams.confirmed import Confirmed
from streams.detectors import kind_of
from streams.eventlog import read_events
from streams.inject import Drift
from streams.motionsense import recordings
from streams.profile import Profile
from streams.replay import end_ranges, replay
from streams.windows import Readings, Windows, empty_readings
from workers import backtest
from workers.profiles import load_profile
from workers.rehearsal import Rehearsed, rehearse
from workers.retrain import policy_of

DRIFTS = (Drift("rotate", 90, 0), Drift("noise", 0.3, 0), Drift("gain", 1.5, 0), Drift("stuck", 0, 0))

REALLY = ("promoted", "held", "rejected")  # how a training ends that had what it needs


@dataclass(frozen=True, slots=True)
class Life:
    """One device, its readings. drift_ts: when it drifts; infinite if unknown. from_ts: since when it is judged."""

    device: str
    kind: str
    from_ts: float
    drift_ts: float
    readings: Readings
    windows: Windows


def policy_settings(path: Path) -> Settings:
    """The settings in force with those of a file over them, in lines as of `.env`. Raises UserError."""
    if not path.is_file():
        raise UserError(f"--policy {path}: no such file; it holds lines like DRIFTLOOP_COOLDOWN_SECONDS=600")
    fields = set(Settings.model_fields)
    given = {}
    for name, value in dotenv_values(path).items():
        field = name.removeprefix("DRIFTLOOP_").lower()
        if field not in fields:
            raise UserError(f"--policy {path}: {name} is no setting; `driftloop config show` lists them")
        given[field] = value
    return load_settings(**given)


def lives_of_recordings(
    data: Path, reference: Sequence[int], subjects: Sequence[int], seed: int
) -> tuple[list[Life], Profile]:
    """Each subject's life with each of DRIFTS, and the profile of the reference subjects; raises as the reader does."""
    people = {each.device: each for each in recordings(data, {*reference, *subjects})}
    monitored = [people[f"phone-{number:02d}"] for number in subjects]
    lives = []
    for number, person in enumerate(monitored):
        other = monitored[(number + 1) % len(monitored)]
        for drift in DRIFTS:
            run = backtest.run_of(person, drift, seed, other, "dev")
            lives.append(Life(person.device, run.kind, run.from_ts, run.drift_ts, run.readings, run.windows))
    return lives, backtest.reference_profile([people[f"phone-{number:02d}"] for number in reference], seed)


def lives_of_topic(settings: Settings) -> list[Life]:
    """Each device's life as `activity` holds it now. Raises Retry; UserError if it holds nothing."""
    found = replay(settings, end_ranges(settings)).windows
    if not found:
        raise UserError("the activity topic holds no readings that make a window")
    return [
        Life(device, "", float(windows.start[0]), np.inf, empty_readings(), windows)
        for device, windows in sorted(found.items())
    ]


def profile_in_service(settings: Settings) -> Profile | None:
    """What the agent judges devices by now; None without a model, or where it has no profile. Raises Retry."""
    served = [logged.envelope.event for logged in read_events(settings, [CURRENT_MODEL]) if logged is not None]
    mine = [event for event in served if isinstance(event, ModelDeployed) and event.model == settings.model]
    found = load_profile(settings, mine[-1].version, mine[-1].digest) if mine else None
    return None if found is None else found[1]


def compare(
    lives: Sequence[Life],
    profile: Profile | None,
    policies: dict[str, Settings],
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[list[dict[str, Any]], dict[str, list[tuple[Life, Rehearsed]]]]:
    """A row for each policy, and what it did to each life. advance: told how many lives are done."""
    rows, told = [], {}
    done = 0
    for name, settings in policies.items():
        kind = kind_of(settings)
        if isinstance(kind, Confirmed) and profile is not None:
            kind.adopt("backtest", profile)
        began, played = time.process_time(), []
        for life in lives:
            run = backtest.Run(life.device, life.kind, life.from_ts, life.drift_ts, life.readings, life.windows)
            if kind.measure is None and not len(life.readings):
                raise UserError(
                    "the `raw` detector looks at readings, and a topic's slice is read as windows: use --data"
                )
            found = backtest.play(kind, backtest.measured(kind, run) if kind.measure is not None else run)
            played.append((life, rehearse(life.windows, found, life.device, None, (), policy_of(settings), settings)))
            done += 1
            advance(done)
        told[name] = played
        rows.append(_row(name, played, time.process_time() - began))
    return rows, told


def _row(name: str, played: Sequence[tuple[Life, Rehearsed]], seconds: float) -> dict[str, Any]:
    hours = sum(float(life.windows.end[-1] - life.windows.start[0]) for life, _ in played) / 3600
    quiet = sum(max(0.0, life.drift_ts - life.from_ts) for life, _ in played if np.isfinite(life.drift_ts)) / 3600
    alarms = [(life, ts) for life, each in played for ts in sorted(set(each.detected)) if ts >= life.from_ts]
    false = sum(ts < life.drift_ts for life, ts in alarms if np.isfinite(life.drift_ts))
    trainings = [(life, each) for life, done in played for each in done.trainings if each.outcome in REALLY]
    delays = [
        min(
            (each.pinned - life.drift_ts for of, each in trainings if of is life and each.begun >= life.drift_ts),
            default=None,
        )
        for life, _ in played
    ]
    known = [delay for delay in delays if delay is not None]
    reasons = Counter(f"{outcome}/{reason}" for _, each in played for _, outcome, reason, _ in each.decisions)
    return {
        "policy": name,
        "devices": len(played),
        "hours": round(hours, 2),
        "alarms": len(alarms),
        "false_alarms_per_hour": round(false / quiet, 3) if quiet else None,
        "retrains": len(trainings),
        "false_retrains": sum(each.begun < life.drift_ts for life, each in trainings) if quiet else None,
        "median_delay_s": round(float(np.median(known)), 1) if known else None,
        "decisions": dict(sorted(reasons.items())),
        "compute_seconds": round(seconds, 2),
        "times_real_time": round(hours * 3600 / max(seconds, 1e-9)),
    }


def draw(told: dict[str, list[tuple[Life, Rehearsed]]], to: Path) -> None:
    """A picture over time, PNG, SVG or, with the picture in it, HTML: a line for each life, a panel for each policy."""
    import base64
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    suffix = to.suffix.lower()
    if suffix not in (".png", ".svg", ".html"):
        raise UserError(f"--figure {to}: end it in .png, .svg or .html")
    most = max(len(played) for played in told.values())
    figure = Figure(figsize=(10, 1.2 + len(told) * (0.8 + 0.22 * most)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, played) in zip(
        np.atleast_1d(figure.subplots(len(told), 1, sharex=True)), told.items(), strict=True
    ):
        for row, (life, done) in enumerate(played):
            zero = float(life.windows.start[0])
            minutes = [(float(ts) - zero) / 60 for ts in (life.from_ts, life.windows.end[-1])]
            axes.plot(minutes, [row, row], color="#d5dae0", linewidth=6, solid_capstyle="butt", zorder=1)
            if np.isfinite(life.drift_ts):
                since = (life.drift_ts - zero) / 60
                axes.plot(
                    [since, minutes[1]], [row, row], color="#f3c9a9", linewidth=6, solid_capstyle="butt", zorder=2
                )
            axes.plot(
                [(ts - zero) / 60 for ts in done.detected], [row] * len(done.detected), "|", color="#c2410c", zorder=3
            )
            ended = [(each.pinned - zero) / 60 for each in done.trainings if each.outcome in REALLY]
            axes.plot(ended, [row] * len(ended), "o", color="#1d4ed8", markersize=5, zorder=4)
        axes.set_yticks(range(len(played)), [f"{life.device} {life.kind}".strip() for life, _ in played], fontsize=7)
        axes.set_title(f"{name}: alarms (red), retrainings (blue); drifted in orange", loc="left", fontsize=9)
        axes.invert_yaxis()
    axes.set_xlabel("minutes of event time")
    if suffix != ".html":
        figure.savefig(to, dpi=110)
        return
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    picture = base64.b64encode(buffer.getvalue()).decode()
    to.write_text(
        f'<!doctype html><meta charset="utf-8"><title>driftloop backtest</title>'
        f'<img alt="alarms and retrainings over time" style="max-width:100%" src="data:image/png;base64,{picture}">\n'
    )
