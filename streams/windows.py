"""Readings into windows: 2.56 s of one device, every 1.28 s.

A window is what the detector and the model both look at, so both import it from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from schemas.activity import ACTIVITIES, ATTITUDE, CHANNEL_NAMES, GRAVITY, SAMPLE_RATE_HZ, Activity

WINDOW: Final = 128
HOP: Final = 64
# Two readings further apart than this are not one movement: the window begins anew after the gap.
MAX_GAP_S: Final = 1.0
NO_LABEL: Final = -1
LABEL_CODES: Final[dict[Activity | None, int]] = {
    None: NO_LABEL,
    **{name: code for code, name in enumerate(ACTIVITIES)},
}

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Readings:
    """n accepted readings of one device in event-time order, as columns.

    ts: (n,) seconds since the epoch. values: (n, 12) float64, columns as in `schemas.activity.CHANNEL_NAMES`, gravity
    always there (`complete_gravity`), rotationRate NaN where the device has none. labels: (n,) codes of `LABEL_CODES`.
    offsets: (n,) Kafka offset of the record that carried each reading.
    """

    ts: Floats
    values: Floats
    labels: Ints
    offsets: Ints

    def __len__(self) -> int:
        return len(self.ts)

    def part(self, start: int, end: int | None = None) -> Readings:
        """Readings start ≤ i < end."""
        rows = slice(start, end)
        return Readings(self.ts[rows], self.values[rows], self.labels[rows], self.offsets[rows])


@dataclass(frozen=True, slots=True)
class Windows:
    """n windows of one device, oldest first.

    values: (n, 128, 12) float64, columns as in `schemas.activity.CHANNEL_NAMES`, in rad, g and rad/s.
    start, end: (n,) event time of each window's first and last reading. first_offset, last_offset: their offsets.
    labels: (n,) the activity's code if all readings of the window carry the same label, else NO_LABEL.
    measures: (n, k) what a detector looks at instead of values (`streams.drift.Kind.measure`), once it is made.
    """

    values: Floats
    start: Floats
    end: Floats
    first_offset: Ints
    last_offset: Ints
    labels: Ints
    measures: Floats | None = None

    def __len__(self) -> int:
        return len(self.start)

    def chosen(self, rows: NDArray[np.bool_] | Ints | slice) -> Windows:
        """The windows that a mask, an index or a slice names."""
        return Windows(
            self.values[rows],
            self.start[rows],
            self.end[rows],
            self.first_offset[rows],
            self.last_offset[rows],
            self.labels[rows],
            None if self.measures is None else self.measures[rows],
        )


def empty_readings() -> Readings:
    """No readings, in the right shapes."""
    none = np.empty(0, np.int64)
    return Readings(np.empty(0), np.empty((0, len(CHANNEL_NAMES))), none, none)


def no_windows() -> Windows:
    """No windows, in the right shapes."""
    none = np.empty(0, np.int64)
    return Windows(np.empty((0, WINDOW, len(CHANNEL_NAMES))), np.empty(0), np.empty(0), none, none, none)


def gravity_of(attitude: Floats) -> Floats:
    """(…, 3) gravity in g from (…, 3) roll, pitch, yaw in rad: (cos p sin r, -sin p, -cos p cos r).

    Roll is circular and gimbal-locked near pitch = ±π/2, the gravity vector is neither. Agrees with MotionSense's own
    gravity columns to 0.0022 g over 117,465 rows.
    """
    roll, pitch = attitude[..., 0], attitude[..., 1]
    return np.stack([np.cos(pitch) * np.sin(roll), -np.sin(pitch), -np.cos(pitch) * np.cos(roll)], -1)


def complete_gravity(values: Floats) -> Floats:
    """values (n, 12) with gravity computed from attitude wherever a reading lacks it; in place."""
    lacking = np.isnan(values[:, GRAVITY]).any(1)
    if lacking.any():
        values[lacking, GRAVITY] = gravity_of(values[lacking, ATTITUDE])
    return values


def cut(buffered: Readings) -> tuple[Windows, Readings]:
    """All complete windows in a device's buffered readings, and the readings that the next window still needs.

    Windows begin every HOP readings from the first one of each unbroken run; a gap of more than MAX_GAP_S ends a run
    and drops its incomplete window. Feeding readings one by one or all at once gives the same windows.
    """
    breaks = np.flatnonzero(np.diff(buffered.ts) > MAX_GAP_S) + 1
    bounds = [0, *breaks.tolist(), len(buffered)]
    starts: list[int] = []
    rest = 0
    for begin, end in pairwise(bounds):
        count = max(0, (end - begin - WINDOW) // HOP + 1)
        starts += range(begin, begin + count * HOP, HOP)
        rest = begin + count * HOP
    return _windows_at(buffered, np.asarray(starts, np.int64)), buffered.part(rest)


def _windows_at(readings: Readings, starts: Ints) -> Windows:
    if not len(starts):
        return no_windows()
    values = sliding_window_view(readings.values, WINDOW, axis=0)[starts].transpose(0, 2, 1)
    labels = sliding_window_view(readings.labels, WINDOW)[starts]
    last = starts + WINDOW - 1
    return Windows(
        values,
        readings.ts[starts],
        readings.ts[last],
        readings.offsets[starts],
        readings.offsets[last],
        np.where((labels == labels[:, :1]).all(1), labels[:, 0], NO_LABEL),
    )


def expected_windows(seconds: float) -> int:
    """How many windows an unbroken run of so many seconds holds."""
    return max(0, (int(seconds * SAMPLE_RATE_HZ + 1e-6) - WINDOW) // HOP + 1)
