"""What the confirmed detector looks at in a window: statistics, and how much of each channel is broken.

One call measures the windows of many devices, because numpy costs as much for one window as for fifty; each row is the
same, bit for bit, however many there are in a call, or results would depend on where a fetch happened to end.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from schemas.activity import ACCELERATION, ATTITUDE, CHANNEL_NAMES, GRAVITY, ROTATION, SAMPLE_RATE_HZ
from streams.statistics import STATISTICS, YAW, Statistic
from streams.windows import Floats

_PAIRS: Final = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
_AXES: Final = "xyz"
ACCELERATION_FLOOR_G: Final = 0.005
RATE_FLOOR_RAD_S: Final = 0.02
COVARIANCE_FLOOR_G: Final = 0.02

# The ten of STATISTICS; how strong acceleration is against rotation (a changed gain moves it, a livelier walk does
# not); the strength of each rotation axis; and the matrix logarithm of acceleration's covariance, which turns with the
# phone as gravity does. `spread` is hand-set from MotionSense, as theirs.
MEASURED: Final[tuple[Statistic, ...]] = (
    *STATISTICS,
    Statistic("userAcceleration", "log-ratio", 0.07),
    *(Statistic(f"rotationRate.{axis}", "log-sd", 0.25) for axis in _AXES),
    *(Statistic("userAcceleration", f"log-covariance-{_AXES[i]}{_AXES[j]}", 0.20) for i, j in _PAIRS),
)
COUNT: Final = len(MEASURED)
# Columns: where each group of statistics lies among them.
GRAVITY_MEANS: Final = slice(0, 3)
STRENGTHS: Final = slice(6, 9)
RATIO: Final = 10
RATES: Final = slice(11, 14)
LOG_COVARIANCE: Final = slice(14, 20)
# After the statistics come, for each channel, the share of readings that repeat the one before, and of those that sit
# at the window's highest or lowest value where that is so high that a sensor may end there.
REPEATED: Final = slice(COUNT, COUNT + len(CHANNEL_NAMES))
CLIPPED: Final = slice(REPEATED.stop, REPEATED.stop + len(CHANNEL_NAMES))
WIDTH: Final = CLIPPED.stop
# Phones measure up to ±8 g and ±1,000 °/s at the least; attitude and gravity have no such end.
_MAY_END: Final = np.array([np.inf] * 6 + [15.0] * 3 + [7.0] * 3)


def _depends() -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """(COUNT, 12): which channels a statistic is computed from."""
    table = np.zeros((COUNT, len(CHANNEL_NAMES)), np.bool_)
    for row, statistic in enumerate(MEASURED):
        if statistic.kind == "log-ratio":
            table[row, ROTATION] = table[row, ACCELERATION] = True
        elif statistic.feature == "userAcceleration":
            table[row, ACCELERATION] = True
        else:
            table[row, CHANNEL_NAMES.index(statistic.feature)] = True
    return table


DEPENDS: Final = _depends()


def completed(values: Floats) -> Floats:
    """Windows (n, 128, 12) with rotationRate computed from attitude where it is missing; a copy if any is.

    The rotation from one reading to the next, R(t)ᵀR(t+1), times the sampling rate; against MotionSense's gyroscope the
    correlation is .99 and the strength within 5 %. So a device without a gyroscope needs no model of its own.
    """
    lacking = np.isnan(values[:, :, ROTATION]).any((1, 2))
    if not lacking.any():
        return values
    made = values.copy()
    made[lacking, :, ROTATION] = rotation_rate(np.ascontiguousarray(values[lacking][:, :, ATTITUDE]))
    return made


def rotation_rate(attitude: Floats) -> Floats:
    """(n, k, 3) rad/s in the device's frame from (n, k, 3) roll, pitch, yaw; the last rate is given twice.

    CoreMotion's order: yaw about z, then pitch about x, then roll about y.
    """
    (cr, cp, cy), (sr, sp, sy) = np.moveaxis(np.cos(attitude), -1, 0), np.moveaxis(np.sin(attitude), -1, 0)
    turn = np.stack(
        [
            np.stack([cy * cr - sy * sp * sr, -sy * cp, cy * sr + sy * sp * cr], -1),
            np.stack([sy * cr + cy * sp * sr, cy * cp, sy * sr - cy * sp * cr], -1),
            np.stack([-cp * sr, sp, cp * cr], -1),
        ],
        -2,
    )
    now, later = turn[:, :-1], turn[:, 1:]

    def off(row: int, column: int) -> Floats:
        """An element of R(t)ᵀR(t+1) minus its mirror image."""
        forth: Floats = (now[..., row] * later[..., column]).sum(-1)
        back: Floats = (now[..., column] * later[..., row]).sum(-1)
        return forth - back

    rate = np.stack([off(2, 1), off(0, 2), off(1, 0)], -1) * (0.5 * SAMPLE_RATE_HZ)
    return np.concatenate([rate, rate[:, -1:]], 1)


def measure(values: Floats) -> Floats:
    """(n, WIDTH) measures of windows (n, 128, 12) as `completed` makes them: MEASURED, REPEATED, CLIPPED."""
    table = np.empty((len(values), WIDTH))
    if not len(values):
        return table
    signals = np.ascontiguousarray(values.transpose(0, 2, 1))
    means = signals.mean(-1)
    table[:, 0:3] = means[:, GRAVITY]
    table[:, 3:6] = means[:, ACCELERATION]
    acceleration = signals[:, ACCELERATION] - means[:, ACCELERATION, None]
    rotation = signals[:, ROTATION] - means[:, ROTATION, None]
    strength = np.square(acceleration).mean(-1)
    rate = np.square(rotation).mean(-1)
    table[:, STRENGTHS] = np.log(np.sqrt(strength) + ACCELERATION_FLOOR_G)
    yaw = np.diff(signals[:, YAW])
    yaw -= 2 * np.pi * np.round(yaw / (2 * np.pi))
    yaw *= SAMPLE_RATE_HZ
    table[:, 9] = np.log(yaw.std(-1) + RATE_FLOOR_RAD_S)
    total = (strength[:, 0] + strength[:, 1] + strength[:, 2]) / 3
    turning = (rate[:, 0] + rate[:, 1] + rate[:, 2]) / 3
    table[:, RATIO] = 0.5 * np.log(total + ACCELERATION_FLOOR_G**2) - 0.5 * np.log(turning + RATE_FLOOR_RAD_S**2)
    table[:, RATES] = 0.5 * np.log(rate + RATE_FLOOR_RAD_S**2)
    table[:, LOG_COVARIANCE] = _log_covariance(acceleration, strength)
    table[:, REPEATED] = (signals[..., 1:] == signals[..., :-1]).mean(-1)
    table[:, CLIPPED] = 0.0
    high, low = signals.max(-1), signals.min(-1)
    for row, channel in np.argwhere(np.maximum(high, -low) > _MAY_END).tolist():
        signal = signals[row, channel]
        table[row, CLIPPED.start + channel] = ((signal == high[row, channel]) | (signal == low[row, channel])).mean()
    return table


def _log_covariance(centred: Floats, variances: Floats) -> Floats:
    """(n, 6) upper triangle of ½ log(cov + .02² I) of centred (n, 3, 128) signals."""
    covariance = np.empty((len(centred), 3, 3))
    for i, j in _PAIRS:
        both = variances[:, i] if i == j else (centred[:, i] * centred[:, j]).mean(-1)
        covariance[:, i, j] = covariance[:, j, i] = both
    covariance[:, range(3), range(3)] += COVARIANCE_FLOOR_G**2
    powers, axes = np.linalg.eigh(covariance)
    logs = 0.5 * np.log(powers)
    return np.stack([(axes[:, i] * axes[:, j] * logs).sum(-1) for i, j in _PAIRS], -1)
