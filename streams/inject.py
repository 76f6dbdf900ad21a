"""Known faults put into a recording, so that what the loop does about them can be shown and measured.

Everything before the chosen moment stays bit for bit as it was.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

import numpy as np
from numpy.random import Generator

from schemas.activity import ACCELERATION, ATTITUDE, GRAVITY, ROTATION
from schemas.errors import UserError
from streams.recording import Recording
from streams.windows import Floats, complete_gravity

Kind = Literal["rotate", "bias", "gain", "noise", "stuck", "ramp", "subject"]
Axis = Literal["x", "y", "z"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
AXES: Final[tuple[Axis, ...]] = get_args(Axis)
RAMP_SECONDS: Final = 300.0

_TEXT: Final = re.compile(
    r"(?P<kind>[a-z]+)(?::(?P<amount>[^@]*))?@(?P<at>[^:@]+)(?::(?P<device>[A-Za-z0-9._-]{1,64}))?"
)
_EXAMPLES: Final[dict[Kind, str]] = {
    "rotate": "rotate:90@300 (degrees, 0 to 180)",
    "bias": "bias:0.3@300 (g)",
    "gain": "gain:1.5@300 (a factor above 0)",
    "noise": "noise:0.1@300 (g, above 0)",
    "stuck": "stuck:x@300 (the axis: x, y or z)",
    "ramp": "ramp:0.3@300 (g per 300 s)",
    "subject": "subject:8@300 (the person who takes over; subject@300: any other)",
}


@dataclass(frozen=True, slots=True)
class Drift:
    """One fault. amount: degrees, g, a factor, or g per 300 s, as its kind has it; 0 for `stuck` and `subject`.

    at_seconds: since the recording's first reading. device: whose readings; None is every device's.
    axis: of `stuck`; `bias` and `ramp` draw theirs unless it is set. person: who takes over; None is any other.
    """

    kind: Kind
    amount: float
    at_seconds: float
    device: str | None = None
    axis: Axis | None = None
    person: str | None = None

    def __str__(self) -> str:
        """The text that `parse_drift` reads."""
        amount = {"stuck": self.axis, "subject": self.person}.get(self.kind, f"{self.amount:g}")
        return (
            f"{self.kind}{f':{amount}' if amount else ''}@{self.at_seconds:g}{f':{self.device}' if self.device else ''}"
        )


def parse_drift(text: str) -> Drift:
    """The drift that `KIND:AMOUNT@SECONDS[:DEVICE]` describes. Raises UserError with an example of that kind."""
    matched = _TEXT.fullmatch(text.strip())
    kind = next((kind for kind in KINDS if matched and kind == matched["kind"]), None)
    if matched is None or kind is None:
        raise UserError(
            f"drift {text!r}: write KIND:AMOUNT@SECONDS[:DEVICE] with KIND one of {', '.join(KINDS)}, "
            "as in rotate:90@300:phone-07"
        )
    amount, device = matched["amount"] or "", matched["device"]
    wrong = UserError(f"drift {text!r}: write it like {_EXAMPLES[kind]}")
    at = _number(matched["at"])
    if at is None or at < 0:
        raise wrong
    if kind == "subject":
        return Drift(kind, 0.0, at, device, person=amount or None)
    if kind == "stuck":
        axis = next((axis for axis in AXES if axis == amount), None)
        if axis is None:
            raise wrong
        return Drift(kind, 0.0, at, device, axis=axis)
    value = _number(amount)
    if value is None or value == 0 or (kind in {"gain", "noise", "rotate"} and value < 0):
        raise wrong
    if kind == "rotate" and value > 180:
        raise wrong
    return Drift(kind, value, at, device)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if np.isfinite(value) else None


def apply(recording: Recording, drift: Drift, rng: Generator, other: Recording | None = None) -> Recording:
    """The recording with the drift from its moment on; the given one stays untouched.

    A drift of another device changes nothing. The same rng state draws the same axis and noise. `subject` needs
    `other`: its readings from its beginning, re-timed, until either recording ends; `person` stays the first one,
    because nobody tells a device that it was handed over.
    """
    if drift.device not in {None, recording.device}:
        return recording
    row = recording.row_at(drift.at_seconds)
    if drift.kind == "subject":
        if other is None:
            raise UserError(f"drift {drift}: there is no other person to take {recording.device} over; add one")
        return _taken_over(recording, row, other)
    values = recording.values.copy()
    after = values[row:]
    if not len(after):
        return recording
    axis = ACCELERATION.start + (AXES.index(drift.axis) if drift.axis else int(rng.integers(3)))
    match drift.kind:
        case "rotate":
            _rotate(after, rotation(rng.standard_normal(3), np.radians(drift.amount)))
        case "bias":
            after[:, axis] += drift.amount
        case "gain":
            after[:, ACCELERATION] *= drift.amount
        case "noise":
            after[:, ACCELERATION] += rng.normal(0.0, drift.amount, (len(after), 3))
        case "stuck":
            after[:, axis] = values[max(row - 1, 0), axis]
        case "ramp":
            moment = recording.ts[0] + drift.at_seconds
            after[:, axis] += drift.amount / RAMP_SECONDS * (recording.ts[row:] - moment)
    return replace(recording, values=values)


def rotation(axis: Floats, angle: float) -> Floats:
    """(3, 3) matrix that turns a vector by angle rad about axis (3,), of any length but 0 (Rodrigues' formula)."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross))


def _rotate(values: Floats, turn: Floats) -> None:
    """The phone sits differently in the pocket: every vector turns, roll and pitch follow gravity; yaw is left.

    Roll and pitch invert `streams.windows.gravity_of`: r = atan2(gx, -gz), and p = atan2(-gy, |(gx, gz)|) rather than
    asin(-gy), because a sensor's gravity is not quite 1 g long.
    """
    complete_gravity(values)
    for columns in (GRAVITY, ROTATION, ACCELERATION):
        values[:, columns] = values[:, columns] @ turn.T
    x, y, z = values[:, GRAVITY].T
    values[:, ATTITUDE.start] = np.arctan2(x, -z)
    values[:, ATTITUDE.start + 1] = np.arctan2(-y, np.hypot(x, z))


def _taken_over(recording: Recording, row: int, other: Recording) -> Recording:
    rest = len(recording) - row
    if not rest or not len(other):
        return recording.chosen(slice(0, row)) if rest else recording
    late = other.starting_at(float(recording.ts[row])).chosen(slice(0, rest))
    late = late.chosen(late.ts <= recording.ts[-1] + 1e-6)
    return replace(
        recording,
        ts=np.concatenate([recording.ts[:row], late.ts]),
        values=np.concatenate([recording.values[:row], late.values]),
        labels=np.concatenate([recording.labels[:row], late.labels]),
        trials=np.concatenate([recording.trials[:row], late.trials]),
    )
