"""Ten numbers that describe a window, each traceable to one feature: what the drift detectors look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from schemas.activity import ACCELERATION, GRAVITY, SAMPLE_RATE_HZ
from streams.windows import Floats

YAW: Final = 2


@dataclass(frozen=True, slots=True)
class Statistic:
    """feature: the channel it is computed from. kind: `mean`, or `log-sd` (of the channel or of its rate).

    spread: how far the mean of one stretch of an activity lies from the next one's when nothing has changed (one
    standard deviation, in the statistic's unit); hand-set from MotionSense, the detector's prior until it knows the
    device. Wide for the yaw rate, which says little while an upright phone is gimbal-locked.
    """

    feature: str
    kind: str
    spread: float


STATISTICS: Final[tuple[Statistic, ...]] = (
    *(Statistic(f"gravity.{axis}", "mean", 0.10) for axis in "xyz"),
    *(Statistic(f"userAcceleration.{axis}", "mean", 0.03) for axis in "xyz"),
    *(Statistic(f"userAcceleration.{axis}", "log-sd", 0.25) for axis in "xyz"),
    Statistic("attitude.yaw", "rate-log-sd", 1.0),
)


def yaw_rate(yaw: Floats) -> Floats:
    """(…, k-1) rad/s from (…, k) rad: differences wrapped to [-π, π), times the sampling rate."""
    steps = np.diff(yaw, axis=-1)
    return ((steps + np.pi) % (2 * np.pi) - np.pi) * SAMPLE_RATE_HZ


def statistics(values: Floats) -> Floats:
    """(n, 10) statistics, columns as in STATISTICS, of windows (n, 128, 12).

    Means in g; log-sd = log(sd + .005) of acceleration in g, log(sd + .02) of the yaw rate in rad/s: the offsets keep
    the logarithm of a still sensor finite (notes of the detector, step 1).
    """
    acceleration = values[:, :, ACCELERATION]
    return np.concatenate(
        [
            values[:, :, GRAVITY].mean(1),
            acceleration.mean(1),
            np.log(acceleration.std(1) + 0.005),
            np.log(yaw_rate(values[:, :, YAW]).std(1) + 0.02)[:, None],
        ],
        axis=1,
    )
