"""Windows into the 107 numbers that a classifier looks at, each named after the sensor that it comes from.

Training, the serving app and the agent (which conditions its detectors on the activity) import them from here, so that
a model meets the same numbers everywhere. On people never seen they decide more than the choice of classifier: ten
plain statistics reach .83 accuracy, these .96 (Driftloop's measurements on MotionSense).

In a name: `|v|` is a vector's length, `vertical` its part along gravity and `horizontal` the length of the rest,
`log_…` the natural logarithm of a quantity plus a floor near the sensor's noise, so that a stuck or resting sensor
gives a finite number. Accelerations are in g, rates in rad/s, frequencies in Hz, lags in s.
"""

from __future__ import annotations

from collections.abc import Sequence
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
_BLOCK: Final = 64


def features(values: Floats, names: Sequence[str] | None = None) -> Floats:
    """(n, len(names)) features of windows (n, 128, 12) with columns as in `schemas.activity.CHANNEL_NAMES`.

    names: any of `FEATURES`, in any order; all of them by default. rotationRate is read only if a name needs it, so a
    device without a gyroscope (NaN columns) asks for `FEATURES_WITHOUT_ROTATION`. Finite for readings that passed the
    gate, and the same however many windows are computed at once. Raises KeyError for a name that is no feature.
    """
    wanted = FEATURES if names is None else tuple(names)
    turning = not set(wanted) <= set(FEATURES_WITHOUT_ROTATION)
    table = np.empty((len(values), len(wanted)))
    for begin in range(0, len(values), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        columns = _columns(np.ascontiguousarray(values[rows].transpose(0, 2, 1)), turning=turning)
        for index, name in enumerate(wanted):
            table[rows, index] = columns[name]
    return table


def _columns(signals: Floats, *, turning: bool) -> Columns:
    """All features of (n, 12, 128) signals; turning: with those that need rotationRate.

    What is done to several signals is done to all of them in one call: numpy costs more for a call than for a window.
    """
    sensors = signals[:, ROTATION.start if turning else ACCELERATION.start : ACCELERATION.stop]
    means = signals.mean(-1)
    centred, variances = _centred(signals[:, GRAVITY.start :], means[:, GRAVITY.start :])
    covariance = _covariances(centred[:, 3 if turning else 6 :])
    spread = 0.5 * np.log(np.linalg.eigvalsh(covariance + COVARIANCE_FLOOR**2 * np.eye(3)))
    length, vertical, horizontal = _along_gravity(sensors.reshape(len(signals), -1, 3, WINDOW), signals[:, GRAVITY])
    # The accelerometer's length, vertical and horizontal part, and the gyroscope's.
    parts = [
        length[:, -1],
        vertical[:, -1],
        horizontal[:, -1],
        *((length[:, 0], vertical[:, 0], horizontal[:, 0]) * turning),
    ]
    shapes = _Shapes(np.stack(parts, 1))
    columns = {
        **_gravity_statistics(means[:, GRAVITY], variances[:, :3]),
        **_acceleration_statistics(means[:, ACCELERATION], centred[:, 6:], variances[:, 6:], spread[:, -1]),
        **_yaw_statistics(signals[:, ATTITUDE][:, 2]),
        **_acceleration_shape(shapes),
        **_jerk_statistics(signals[:, ACCELERATION], vertical[:, -1]),
    }
    spectra = _spectra(_RHYTHMS if turning else _RHYTHMS[:2], shapes)
    columns |= spectra[0] | spectra[1]
    if turning:
        columns |= {
            **_rate_statistics(means[:, ROTATION], variances[:, 3:6], variances[:, 6:], covariance[:, 0], spread[:, 0]),
            **_rate_shape(shapes),
            "|userAcceleration|.correlation.|rotationRate|": shapes.correlation(LENGTH, RATE_LENGTH),
            "userAcceleration.vertical.correlation.|rotationRate|": shapes.correlation(VERTICAL, RATE_LENGTH),
            **spectra[2],
        }
    return columns


# Statistics of the axes


def _gravity_statistics(means: Floats, variances: Floats) -> Columns:
    """Posture and how much it moves. means, variances: (n, 3)."""
    return {
        **_per_axis("gravity.{}.mean", means),
        **_per_axis("gravity.{}.log_sd", _log(np.sqrt(variances))),
        "gravity.tilt.log_rms": _log(np.sqrt(variances.sum(-1))),
    }


def _acceleration_statistics(means: Floats, centred: Floats, variances: Floats, spread: Floats) -> Columns:
    """Level, strength, direction and rhythm of each axis. centred: (n, 3, 128); the others: (n, 3)."""
    columns = {
        **_per_axis("userAcceleration.{}.mean", means),
        **_per_axis("userAcceleration.{}.log_sd", _log(np.sqrt(variances))),
        **_principal("userAcceleration", spread),
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


def _rate_statistics(
    means: Floats, variances: Floats, acceleration_variances: Floats, covariance: Floats, spread: Floats
) -> Columns:
    """Level, strength and coupling of the gyroscope's axes, in rad/s. covariance: (n, 3, 3); the others: (n, 3).

    The ratio of acceleration to rotation tells a change of the accelerometer's gain from a livelier person.
    """
    sd = np.sqrt(variances)
    strength = 0.5 * np.log(variances.mean(-1) + RATE_FLOOR_RAD_S**2)
    acceleration_strength = 0.5 * np.log(acceleration_variances.mean(-1) + ACCELERATION_FLOOR_G**2)
    return {
        **_per_axis("rotationRate.{}.mean", means),
        **_per_axis("rotationRate.{}.log_sd", 0.5 * np.log(variances + RATE_FLOOR_RAD_S**2)),
        "userAcceleration.log_ratio.rotationRate": acceleration_strength - strength,
        **_principal("rotationRate", spread),
        **{
            f"rotationRate.{AXES[i]}.correlation.{AXES[j]}": covariance[:, i, j]
            / (sd[:, i] * sd[:, j] + RATE_FLOOR_RAD_S**2)
            for i, j in ((0, 1), (0, 2), (1, 2))
        },
    }


# Magnitude, vertical and horizontal: what stays the same when the phone is turned in the pocket


def _along_gravity(vectors: Floats, gravity: Floats) -> tuple[Floats, Floats, Floats]:
    """Length, signed part along gravity (n, 3, 128) and length of the rest of (n, q, 3, 128) vectors: (n, q, 128)."""
    down = gravity / (np.sqrt((gravity * gravity).sum(1, keepdims=True)) + ENERGY_FLOOR)
    squared = (vectors * vectors).sum(2)
    vertical = (vectors * down[:, None]).sum(2)
    return np.sqrt(squared), vertical, np.sqrt(np.maximum(squared - vertical * vertical, 0))


LENGTH, VERTICAL, HORIZONTAL, RATE_LENGTH, RATE_VERTICAL, RATE_HORIZONTAL = range(6)


class _Shapes:
    """(n, 3 or 6, 128) lengths and parts along and across gravity, their means, and what is left without them."""

    def __init__(self, signals: Floats) -> None:
        self.means = signals.mean(-1)
        self.centred, self.variances = _centred(signals, self.means)
        self.sd = np.sqrt(self.variances)

    def correlation(self, one: int, other: int) -> Floats:
        """(n,) of two of the signals, 0 where either rests."""
        products = (self.centred[:, one] * self.centred[:, other]).mean(-1)
        correlation: Floats = products / (np.sqrt(self.variances[:, one] * self.variances[:, other]) + 1e-4)
        return correlation


def _acceleration_shape(shapes: _Shapes) -> Columns:
    """How strong the movement is, how much of it is vertical, and the shape of the vertical part, in g."""
    centred, sd = shapes.centred[:, VERTICAL], shapes.sd[:, VERTICAL]
    squares = centred * centred
    crossings = (centred[:, 1:] * centred[:, :-1] < 0).mean(-1)
    log_means, log_sds = _log(shapes.means[:, (LENGTH, HORIZONTAL)]), _log(shapes.sd[:, :3])
    return {
        "|userAcceleration|.log_mean": log_means[:, 0],
        "|userAcceleration|.log_sd": log_sds[:, LENGTH],
        "userAcceleration.vertical.mean": shapes.means[:, VERTICAL],
        "userAcceleration.vertical.log_sd": log_sds[:, VERTICAL],
        "userAcceleration.vertical.skewness": (squares * centred).mean(-1) / (sd + 0.02) ** 3,
        "userAcceleration.vertical.kurtosis": (squares * squares).mean(-1) / (sd + 0.02) ** 4,
        "userAcceleration.vertical.zero_crossings": crossings,
        "userAcceleration.horizontal.log_mean": log_means[:, 1],
        "userAcceleration.horizontal.log_sd": log_sds[:, HORIZONTAL],
        "userAcceleration.vertical.log_ratio.horizontal": log_sds[:, VERTICAL] - log_means[:, 1],
        "userAcceleration.vertical.correlation.horizontal": shapes.correlation(VERTICAL, HORIZONTAL),
    }


def _jerk_statistics(acceleration: Floats, vertical: Floats) -> Columns:
    """How hard the movement's impacts are. acceleration: (n, 3, 128) g, vertical: (n, 128) g; jerk in g/s."""
    steps = np.diff(acceleration)
    jerks = np.stack([np.sqrt((steps * steps).sum(1)), np.diff(vertical)], 1) * SAMPLE_RATE_HZ
    sd = _sd(jerks)
    return {
        "userAcceleration.|jerk|.log_mean": _log(jerks[:, 0].mean(-1), JERK_FLOOR_G_S),
        "userAcceleration.|jerk|.log_sd": _log(sd[:, 0], JERK_FLOOR_G_S),
        "userAcceleration.|jerk|.log_max": _log(jerks[:, 0].max(-1), JERK_FLOOR_G_S),
        "userAcceleration.vertical.jerk.log_sd": _log(sd[:, 1], JERK_FLOOR_G_S),
    }


def _rate_shape(shapes: _Shapes) -> Columns:
    """How strong the turning is, and how much of it is about the vertical, in rad/s."""
    turn = _log(shapes.sd[:, RATE_VERTICAL], RATE_FLOOR_RAD_S)
    swing = _log(shapes.means[:, RATE_HORIZONTAL], RATE_FLOOR_RAD_S)
    return {
        "|rotationRate|.log_mean": _log(shapes.means[:, RATE_LENGTH], RATE_FLOOR_RAD_S),
        "|rotationRate|.log_sd": _log(shapes.sd[:, RATE_LENGTH], RATE_FLOOR_RAD_S),
        "rotationRate.vertical.mean": shapes.means[:, RATE_VERTICAL],
        "rotationRate.vertical.log_sd": turn,
        "rotationRate.horizontal.log_mean": swing,
        "rotationRate.vertical.log_ratio.horizontal": turn - swing,
    }


# Spectra: the rhythm

# Of which signal, and what its sensor shows at rest.
_RHYTHMS: Final = (
    ("|userAcceleration|", LENGTH, ACCELERATION_FLOOR_G),
    ("userAcceleration.vertical", VERTICAL, ACCELERATION_FLOOR_G),
    ("|rotationRate|", RATE_LENGTH, RATE_FLOOR_RAD_S),
)


def _spectra(rhythms: Sequence[tuple[str, int, float]], shapes: _Shapes) -> list[Columns]:
    """For each signal 16 features of its rhythm: band powers, the strongest frequency, autocorrelation."""
    centred = shapes.centred[:, [signal for _, signal, _ in rhythms]]
    floors = np.array([floor * floor for _, _, floor in rhythms])
    transformed = np.fft.rfft(centred * _HANN)
    power = (transformed.real**2 + transformed.imag**2) / WINDOW
    bands = 0.5 * np.log(np.add.reduceat(power, _BAND_STARTS, axis=-1) + floors[:, None])
    gait = power[..., GAIT_BINS]
    share = gait / (gait.sum(-1, keepdims=True) + ENERGY_FLOOR)
    dominant = _BIN_HZ[GAIT_BINS][gait.argmax(-1)]
    entropy = -(share * np.log(share + ENERGY_FLOOR)).sum(-1)
    peak = share.max(-1)
    correlation = _autocorrelation(centred)
    stride = correlation[..., STRIDE_LAGS]
    highest = stride.max(-1)
    lag = (stride.argmax(-1) + STRIDE_LAGS.start) / SAMPLE_RATE_HZ
    return [
        {
            **{f"{source}.{name}": bands[:, row, index] for index, name in enumerate(_BANDS)},
            f"{source}.dominant_hz": dominant[:, row],
            f"{source}.spectral_entropy": entropy[:, row],
            f"{source}.peak_share": peak[:, row],
            f"{source}.stride_autocorrelation": highest[:, row],
            f"{source}.stride_s": lag[:, row],
            **{f"{source}.{_lag_name(step)}": correlation[:, row, step] for step in STEP_LAGS},
        }
        for row, (source, _, _) in enumerate(rhythms)
    ]


def _autocorrelation(centred: Floats) -> Floats:
    """(…, 76) unbiased autocorrelation of centred (…, 128) signals at lags 0 to 75, by Wiener-Khinchin."""
    spectrum = np.fft.rfft(centred, 2 * WINDOW)
    products = np.fft.irfft(spectrum.real**2 + spectrum.imag**2)[..., : STRIDE_LAGS.stop]
    correlation: Floats = products / (products[..., :1] + ENERGY_FLOOR) * _UNBIASED
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


def _covariances(centred: Floats) -> Floats:
    """(n, q, 3, 3) covariances of centred (n, 3 q, 128) vectors."""
    vectors = centred.reshape(len(centred), -1, 3, WINDOW)
    covariance: Floats = vectors @ vectors.transpose(0, 1, 3, 2) / WINDOW
    return covariance


def _principal(source: str, spread: Floats) -> Columns:
    """(n, 3) log standard deviations along the principal axes, weakest first: the same however the sensor is turned."""
    return {f"{source}.principal_{index + 1}.log_sd": spread[:, index] for index in range(3)}


def _per_axis(name: str, columns: Floats) -> Columns:
    return {name.format(axis): columns[:, index] for index, axis in enumerate(AXES)}


def _lag_name(lag: int) -> str:
    return f"autocorrelation_{lag / SAMPLE_RATE_HZ:.2f}s"


# The functions above are the only list of names, so a name cannot part from its number.
_RESTING: Final = np.zeros((1, len(CHANNEL_NAMES), WINDOW))
FEATURES_WITHOUT_ROTATION: Final[tuple[str, ...]] = tuple(_columns(_RESTING, turning=False))
FEATURES: Final[tuple[str, ...]] = tuple(_columns(_RESTING, turning=True))
# Those that stay the same however the sensor is turned. Which activity it is, they tell of people never seen where the
# others mislead: they know a pocket, not a person.
FEATURES_WITHOUT_AXES: Final[tuple[str, ...]] = tuple(
    name for name in FEATURES if not {"x", "y", "z"} & set(name.split("."))
)
