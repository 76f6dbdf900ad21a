"""Windows into the 107 numbers that a classifier looks at, each named after the sensor that it comes from.

Training, the serving app and the agent (which conditions its detectors on the activity) import them from here, so that
a model meets the same numbers everywhere. On people never seen they decide more than the choice of classifier: ten
plain statistics reach .83 accuracy, these .96 (Driftloop's measurements on MotionSense).

In a name: `|v|` is a vector's length, `vertical` its part along gravity and `horizontal` the length of the rest,
`log_…` the natural logarithm of a quantity plus a floor near the sensor's noise, so that a stuck or resting sensor
gives a finite number. Accelerations are in g, rates in rad/s, frequencies in Hz, lags in s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from schemas.activity import ACCELERATION, ATTITUDE, CHANNEL_NAMES, GRAVITY, ROTATION, SAMPLE_RATE_HZ
from streams.windows import WINDOW, Floats

Columns = dict[str, Floats]

# What a sensor at rest still shows; added before a logarithm or below a fraction.
ACCELERATION_FLOOR_G: Final = 0.005
RATE_FLOOR_RAD_S: Final = 0.02
JERK_FLOOR_G_S: Final = 0.1
COVARIANCE_FLOOR: Final = 0.02
ENERGY_FLOOR: Final = 1e-9
# A signal with less variance than this is constant, and what is left of it is rounding.
CONSTANT_VARIANCE: Final = 1e-14

BAND_EDGES_HZ: Final = (0.3, 1.0, 1.7, 2.4, 3.2, 4.8, 7.2, 12.0, 25.1)
STRIDE_LAGS: Final = slice(12, 76)  # 0.24 to 1.5 s: one step to one stride, jogging to slow walking
STEP_LAGS: Final = (6, 12, 25)  # 0.12, 0.24 and 0.5 s
GAIT_BINS: Final = slice(1, 34)  # 0.4 to 12.9 Hz, without the window's mean

AXES: Final = ("x", "y", "z")
_BIN_HZ: Final = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE_HZ)
_HANN: Final = np.hanning(WINDOW)
# First bin of each band; a band ends where the next one begins.
_BAND_STARTS: Final = np.searchsorted(_BIN_HZ, BAND_EDGES_HZ[:-1])
_BANDS: Final = tuple(f"band_{low}_{min(high, 25.0)}" for low, high in pairwise(BAND_EDGES_HZ))
# Fewer products enter an autocorrelation at a longer lag.
_UNBIASED: Final = WINDOW / (WINDOW - np.arange(STRIDE_LAGS.stop))
# So many windows stay in a core's cache together; it also bounds the memory of a training.
_BLOCK: Final = 256


def features(values: Floats, names: Sequence[str] | None = None) -> Floats:
    """(n, len(names)) features of windows (n, 128, 12) with columns as in `schemas.activity.CHANNEL_NAMES`.

    names: any of `FEATURES`, in any order; all of them by default. rotationRate is read only if a name needs it, so a
    device without a gyroscope (NaN columns) asks for `FEATURES_WITHOUT_ROTATION`. Finite for readings that passed the
    gate, and the same however many windows are computed at once. Raises KeyError for a name that is no feature.
    """
    wanted = FEATURES if names is None else tuple(names)
    groups: list[Callable[[Floats], Columns]] = [_without_rotation]
    if not set(wanted) <= set(FEATURES_WITHOUT_ROTATION):
        groups.append(_with_rotation)
    table = np.empty((len(values), len(wanted)))
    for begin in range(0, len(values), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        signals = np.ascontiguousarray(values[rows].transpose(0, 2, 1))
        columns = {name: column for group in groups for name, column in group(signals).items()}
        for index, name in enumerate(wanted):
            table[rows, index] = columns[name]
    return table


def _without_rotation(signals: Floats) -> Columns:
    """Features of attitude, gravity and userAcceleration. signals: (n, 12, 128)."""
    acceleration, gravity = signals[:, ACCELERATION], signals[:, GRAVITY]
    length, vertical, horizontal = _along_gravity(acceleration, gravity)
    return {
        **_gravity_statistics(gravity),
        **_acceleration_statistics(acceleration),
        **_yaw_statistics(signals[:, ATTITUDE][:, 2]),
        **_acceleration_shape(length, vertical, horizontal),
        **_jerk_statistics(acceleration, vertical),
        **_spectrum("|userAcceleration|", length, ACCELERATION_FLOOR_G),
        **_spectrum("userAcceleration.vertical", vertical, ACCELERATION_FLOOR_G),
    }


def _with_rotation(signals: Floats) -> Columns:
    """Features that need rotationRate. signals: (n, 12, 128)."""
    acceleration, gravity, rate = signals[:, ACCELERATION], signals[:, GRAVITY], signals[:, ROTATION]
    rate_length, rate_vertical, rate_horizontal = _along_gravity(rate, gravity)
    length, vertical, _ = _along_gravity(acceleration, gravity)
    return {
        **_rate_statistics(rate, acceleration),
        **_rate_shape(rate_length, rate_vertical, rate_horizontal),
        "|userAcceleration|.correlation.|rotationRate|": _correlation(length, rate_length),
        "userAcceleration.vertical.correlation.|rotationRate|": _correlation(vertical, rate_length),
        **_spectrum("|rotationRate|", rate_length, RATE_FLOOR_RAD_S),
    }


# Statistics of the axes


def _gravity_statistics(gravity: Floats) -> Columns:
    """Posture and how much it moves. gravity: (n, 3, 128)."""
    means = gravity.mean(-1)
    variances = _centred(gravity, means)[1]
    return {
        **_per_axis("gravity.{}.mean", means),
        **_per_axis("gravity.{}.log_sd", _log(np.sqrt(variances))),
        "gravity.tilt.log_rms": _log(np.sqrt(variances.sum(-1))),
    }


def _acceleration_statistics(acceleration: Floats) -> Columns:
    """Level, strength, direction and rhythm of each axis. acceleration: (n, 3, 128)."""
    means = acceleration.mean(-1)
    centred, variances = _centred(acceleration, means)
    columns = {
        **_per_axis("userAcceleration.{}.mean", means),
        **_per_axis("userAcceleration.{}.log_sd", _log(np.sqrt(variances))),
        **_principal("userAcceleration", _covariance(centred)),
    }
    for lag in STEP_LAGS[1:]:
        products = (centred[..., lag:] * centred[..., :-lag]).mean(-1)
        columns |= _per_axis(f"userAcceleration.{{}}.{_lag_name(lag)}", products / (variances + 1e-4))
    return columns


def _yaw_statistics(yaw: Floats) -> Columns:
    """Spread of the heading's rate. yaw: (n, 128) rad; differences are wrapped, as the heading jumps at ±π."""
    steps = np.diff(yaw)
    rate = (steps - 2 * np.pi * np.round(steps / (2 * np.pi))) * SAMPLE_RATE_HZ
    return {"attitude.yaw_rate.log_sd": _log(_sd(rate), RATE_FLOOR_RAD_S)}


def _rate_statistics(rate: Floats, acceleration: Floats) -> Columns:
    """Level, strength and coupling of the gyroscope's axes. rate: (n, 3, 128) rad/s.

    The ratio of acceleration to rotation tells a change of the accelerometer's gain from a livelier person.
    """
    means = rate.mean(-1)
    centred, variances = _centred(rate, means)
    covariance = _covariance(centred)
    sd = np.sqrt(variances)
    strength = 0.5 * np.log(variances.mean(-1) + RATE_FLOOR_RAD_S**2)
    acceleration_variances = _centred(acceleration, acceleration.mean(-1))[1]
    acceleration_strength = 0.5 * np.log(acceleration_variances.mean(-1) + ACCELERATION_FLOOR_G**2)
    return {
        **_per_axis("rotationRate.{}.mean", means),
        **_per_axis("rotationRate.{}.log_sd", 0.5 * np.log(variances + RATE_FLOOR_RAD_S**2)),
        "userAcceleration.log_ratio.rotationRate": acceleration_strength - strength,
        **_principal("rotationRate", covariance),
        **{
            f"rotationRate.{AXES[i]}.correlation.{AXES[j]}": covariance[:, i, j]
            / (sd[:, i] * sd[:, j] + RATE_FLOOR_RAD_S**2)
            for i, j in ((0, 1), (0, 2), (1, 2))
        },
    }


# Magnitude, vertical and horizontal: what stays the same when the phone is turned in the pocket


def _along_gravity(vector: Floats, gravity: Floats) -> tuple[Floats, Floats, Floats]:
    """Length, signed part along gravity and length of the rest of (n, 3, 128) vectors, each (n, 128)."""
    down = gravity / (np.sqrt((gravity * gravity).sum(1, keepdims=True)) + ENERGY_FLOOR)
    squared = (vector * vector).sum(1)
    vertical = (vector * down).sum(1)
    return np.sqrt(squared), vertical, np.sqrt(np.maximum(squared - vertical**2, 0))


def _acceleration_shape(length: Floats, vertical: Floats, horizontal: Floats) -> Columns:
    """How strong the movement is, how much of it is vertical, and the shape of the vertical part; (n, 128) in g."""
    centred, variance = _centred(vertical, vertical.mean(-1))
    sd = np.sqrt(variance)
    squares = centred * centred
    crossings = (centred[:, 1:] * centred[:, :-1] < 0).mean(-1)
    return {
        "|userAcceleration|.log_mean": _log(length.mean(-1)),
        "|userAcceleration|.log_sd": _log(_sd(length)),
        "userAcceleration.vertical.mean": vertical.mean(-1),
        "userAcceleration.vertical.log_sd": _log(sd),
        "userAcceleration.vertical.skewness": (squares * centred).mean(-1) / (sd + 0.02) ** 3,
        "userAcceleration.vertical.kurtosis": (squares * squares).mean(-1) / (sd + 0.02) ** 4,
        "userAcceleration.vertical.zero_crossings": crossings,
        "userAcceleration.horizontal.log_mean": _log(horizontal.mean(-1)),
        "userAcceleration.horizontal.log_sd": _log(_sd(horizontal)),
        "userAcceleration.vertical.log_ratio.horizontal": _log(sd) - _log(horizontal.mean(-1)),
        "userAcceleration.vertical.correlation.horizontal": _correlation(vertical, horizontal),
    }


def _jerk_statistics(acceleration: Floats, vertical: Floats) -> Columns:
    """How hard the movement's impacts are. acceleration: (n, 3, 128) g, vertical: (n, 128) g; jerk in g/s."""
    jerk = np.sqrt((np.diff(acceleration) ** 2).sum(1)) * SAMPLE_RATE_HZ
    return {
        "userAcceleration.|jerk|.log_mean": _log(jerk.mean(-1), JERK_FLOOR_G_S),
        "userAcceleration.|jerk|.log_sd": _log(_sd(jerk), JERK_FLOOR_G_S),
        "userAcceleration.|jerk|.log_max": _log(jerk.max(-1), JERK_FLOOR_G_S),
        "userAcceleration.vertical.jerk.log_sd": _log(_sd(np.diff(vertical) * SAMPLE_RATE_HZ), JERK_FLOOR_G_S),
    }


def _rate_shape(length: Floats, vertical: Floats, horizontal: Floats) -> Columns:
    """How strong the turning is, and how much of it is about the vertical; (n, 128) in rad/s."""
    turn = _log(_sd(vertical), RATE_FLOOR_RAD_S)
    swing = _log(horizontal.mean(-1), RATE_FLOOR_RAD_S)
    return {
        "|rotationRate|.log_mean": _log(length.mean(-1), RATE_FLOOR_RAD_S),
        "|rotationRate|.log_sd": _log(_sd(length), RATE_FLOOR_RAD_S),
        "rotationRate.vertical.mean": vertical.mean(-1),
        "rotationRate.vertical.log_sd": turn,
        "rotationRate.horizontal.log_mean": swing,
        "rotationRate.vertical.log_ratio.horizontal": turn - swing,
    }


# Spectra: the rhythm


def _spectrum(source: str, signal: Floats, floor: float) -> Columns:
    """16 features of a signal's rhythm: band powers, the strongest frequency, autocorrelation. signal: (n, 128)."""
    centred = _centred(signal, signal.mean(-1))[0]
    power = np.abs(np.fft.rfft(centred * _HANN)) ** 2 / WINDOW
    bands = 0.5 * np.log(np.add.reduceat(power, _BAND_STARTS, axis=-1) + floor**2)
    gait = power[:, GAIT_BINS]
    share = gait / (gait.sum(-1, keepdims=True) + ENERGY_FLOOR)
    correlation = _autocorrelation(centred)
    stride = correlation[:, STRIDE_LAGS]
    return {
        **{f"{source}.{name}": bands[:, index] for index, name in enumerate(_BANDS)},
        f"{source}.dominant_hz": _BIN_HZ[GAIT_BINS][gait.argmax(-1)],
        f"{source}.spectral_entropy": -(share * np.log(share + ENERGY_FLOOR)).sum(-1),
        f"{source}.peak_share": share.max(-1),
        f"{source}.stride_autocorrelation": stride.max(-1),
        f"{source}.stride_s": (stride.argmax(-1) + STRIDE_LAGS.start) / SAMPLE_RATE_HZ,
        **{f"{source}.{_lag_name(lag)}": correlation[:, lag] for lag in STEP_LAGS},
    }


def _autocorrelation(centred: Floats) -> Floats:
    """(n, 76) unbiased autocorrelation of centred (n, 128) signals at lags 0 to 75, by Wiener-Khinchin."""
    spectrum = np.fft.rfft(centred, 2 * WINDOW)
    products = np.fft.irfft(spectrum.real**2 + spectrum.imag**2)[:, : STRIDE_LAGS.stop]
    correlation: Floats = products / (products[:, :1] + ENERGY_FLOOR) * _UNBIASED
    return correlation


# Building blocks


def _centred(signal: Floats, mean: Floats) -> tuple[Floats, Floats]:
    """A signal minus its mean (over the last axis), exactly 0 where it is constant, and its variance."""
    centred = signal - mean[..., None]
    variance = (centred * centred).mean(-1)
    constant = variance < CONSTANT_VARIANCE
    if constant.any():
        centred[constant] = 0
        variance[constant] = 0
    return centred, variance


def _sd(signal: Floats) -> Floats:
    sd: Floats = np.sqrt(_centred(signal, signal.mean(-1))[1])
    return sd


def _log(quantity: Floats, floor: float = ACCELERATION_FLOOR_G) -> Floats:
    logarithm: Floats = np.log(quantity + floor)
    return logarithm


def _correlation(one: Floats, other: Floats) -> Floats:
    """(n,) correlation of two (n, 128) signals, 0 where either rests."""
    first, first_variance = _centred(one, one.mean(-1))
    second, second_variance = _centred(other, other.mean(-1))
    correlation: Floats = (first * second).mean(-1) / (np.sqrt(first_variance * second_variance) + 1e-4)
    return correlation


def _covariance(centred: Floats) -> Floats:
    """(n, 3, 3) covariance of centred (n, 3, 128) vectors."""
    covariance: Floats = centred @ centred.transpose(0, 2, 1) / WINDOW
    return covariance


def _principal(source: str, covariance: Floats) -> Columns:
    """Log standard deviations along the principal axes, weakest first: the same however the sensor is turned."""
    spread = 0.5 * np.log(np.linalg.eigvalsh(covariance + COVARIANCE_FLOOR**2 * np.eye(3)))
    return {f"{source}.principal_{index + 1}.log_sd": spread[:, index] for index in range(3)}


def _per_axis(name: str, columns: Floats) -> Columns:
    return {name.format(axis): columns[:, index] for index, axis in enumerate(AXES)}


def _lag_name(lag: int) -> str:
    return f"autocorrelation_{lag / SAMPLE_RATE_HZ:.2f}s"


# The functions above are the only list of names, so a name cannot part from its number.
_RESTING: Final = np.zeros((1, len(CHANNEL_NAMES), WINDOW))
FEATURES_WITHOUT_ROTATION: Final[tuple[str, ...]] = tuple(_without_rotation(_RESTING))
FEATURES: Final[tuple[str, ...]] = (*FEATURES_WITHOUT_ROTATION, *_with_rotation(_RESTING))
