"""SYNTHETIC people with phones in their pockets: what demo, tests and benchmarks play where there is no real data.

Hand-set, not fitted to anybody: the recipe is that of notes/drift.md, with the sizes of acceleration and rotation rate
set by eye to those of the MotionSense recordings. Measured figures belong to real recordings; this one flatters.

The twelve channels are one motion, not twelve: a gait (stride, harmonics, per-stride vigour) swings the phone's
attitude and shakes it up, forward and sideways; gravity, rotation rate and acceleration in the phone's frame all follow
from that attitude. CoreMotion's convention: yaw about z, then pitch about x, then roll about y.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.random import Generator

from schemas.activity import (
    ACCELERATION,
    ACTIVITIES,
    ATTITUDE,
    CHANNEL_NAMES,
    GRAVITY,
    ROTATION,
    SAMPLE_RATE_HZ,
    Activity,
)
from schemas.errors import UserError
from streams.recording import Person, Recording
from streams.windows import LABEL_CODES, Floats, gravity_of

BOUT_SECONDS: Final = (20.0, 100.0)
MIX: Final[Mapping[Activity, float]] = {"dws": 0.12, "ups": 0.12, "wlk": 0.26, "jog": 0.12, "sit": 0.20, "std": 0.18}

_HARMONICS: Final = 10  # of the stride, which is two steps
_FADE_S: Final = 0.4  # a gait begins and ends within half a step
_POSTURE_S: Final = 0.8  # standing up or sitting down
_AR_KERNEL: Final = 0.7 ** np.arange(16) * np.sqrt(1 - 0.7**2)  # AR(1) of coefficient .7 and variance 1


@dataclass(frozen=True, slots=True)
class Gait:
    """How people on the whole do one activity.

    step: steps a second; 0 is still. shake: (3,) sd of acceleration up, forward and sideways, g. swing: (3,) sd of the
    rates of roll, pitch and yaw, rad/s. roll, pitch: the phone's posture, rad. noise: g. sway: rad, slow.
    shape: (10,) amplitudes of the stride's harmonics in acceleration. peaked: 0 spreads their phases, 1 aligns them,
    as a heel strike does. uneven: sd of a stride's log vigour. landings: share of stairs that is level.
    """

    step: float
    shake: tuple[float, float, float]
    swing: tuple[float, float, float]
    roll: float
    pitch: float
    noise: float
    sway: float
    shape: tuple[float, ...] = (0.0,) * _HARMONICS
    peaked: float = 0.0
    uneven: float = 0.0
    landings: float = 0.0


_GAITS: Final[Mapping[Activity, Gait]] = {
    "dws": Gait(
        1.85, (0.46, 0.32, 0.26), (0.75, 1.15, 1.05), 0.25, -1.15, 0.06, 0.03,
        (0.18, 0.50, 0.28, 0.33, 0.20, 0.38, 0.15, 0.38, 0.12, 0.30), 0.75, 0.22, 0.15,
    ),
    "ups": Gait(
        1.58, (0.33, 0.25, 0.21), (0.75, 1.30, 1.00), 0.25, -1.02, 0.05, 0.03,
        (0.26, 0.58, 0.25, 0.34, 0.18, 0.28, 0.12, 0.32, 0.10, 0.22), 0.35, 0.20, 0.15,
    ),
    "wlk": Gait(
        1.92, (0.52, 0.38, 0.30), (0.80, 1.40, 1.15), 0.25, -1.20, 0.05, 0.02,
        (0.12, 0.56, 0.25, 0.40, 0.15, 0.28, 0.12, 0.35, 0.12, 0.30), 0.50, 0.12,
    ),
    "jog": Gait(
        2.70, (1.20, 0.70, 0.50), (1.30, 2.10, 1.70), 0.25, -1.15, 0.10, 0.02,
        (0.05, 0.72, 0.10, 0.39, 0.10, 0.28, 0.10, 0.30, 0.08, 0.30), 0.40, 0.12,
    ),
    "sit": Gait(0.0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.60, -0.15, 0.008, 0.006),
    "std": Gait(0.0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.20, -1.30, 0.012, 0.020),
}  # fmt: skip
# The thigh swings once a stride; what is faster is the phone shaking in its pocket.
_SWING_SHAPE: Final = np.array([1.0, 0.28, 0.10, 0.07, 0.03, 0.02, 0.0, 0.0, 0.0, 0.0])
_RATTLE_SHAPE: Final = np.array([0.0, 0.0, 0.1, 0.3, 0.5, 0.7, 0.7, 0.7, 0.5, 0.5])
_RATTLE: Final = 0.30  # sd of the shaking as a share of the swing's
# Fixed, so that people differ around a common gait: one phase for each of up, forward, sideways and each harmonic.
_PHASES: Final = np.random.default_rng(20180802).uniform(-np.pi, np.pi, (3, _HARMONICS))
_SWING_PHASES: Final = np.random.default_rng(20180803).uniform(-np.pi, np.pi, (3, _HARMONICS))


@dataclass(frozen=True, slots=True)
class Habit:
    """How one person does one activity: coefficients of cos(kφ) and sin(kφ) of the stride's phase φ, k = 1…10.

    shake: (20, 3) g. swing: (20, 3) rad. rattle: (20, 3) rad/s. posture: (3,) roll, pitch, and yaw against the heading.
    """

    gait: Gait
    step: float
    shake: Floats
    swing: Floats
    rattle: Floats
    posture: Floats
    noise: float


@dataclass(frozen=True, slots=True)
class Walker:
    """One simulated person. bias: (3,) offset of the phone's accelerometer, g."""

    person: Person
    habits: Mapping[Activity, Habit]
    bias: Floats


@dataclass(frozen=True, slots=True)
class _Bout:
    """n readings of one activity before they are joined.

    posture: (n, 3) roll, pitch, and yaw against the heading, rad. turning: (n,) rate of the heading, rad/s. swing,
    shake, noise, rattle: (n, 3) each, what the gait adds to attitude, acceleration and rotation rate.
    """

    activity: Activity
    posture: Floats
    turning: Floats
    swing: Floats
    shake: Floats
    noise: Floats
    rattle: Floats


def simulate(
    devices: int,
    seconds: float,
    seed: int,
    start_ts: float,
    first: int = 1,
    *,
    session: int = 0,
    bout_seconds: tuple[float, float] = BOUT_SECONDS,
    mix: Mapping[Activity, float] = MIX,
) -> list[Recording]:
    """SYNTHETIC recordings of so many seconds at 50 Hz, one for each device, all beginning at start_ts.

    Persons `sim-01`… carry `phone-01`…, counted from first. A person's traits depend on (seed, person) only, so
    another session is the same person on another day: other bouts, other order. A longer recording of the same session
    begins with the shorter one. Raises UserError for arguments that cannot work.
    """
    if devices < 1 or not 0 < seconds < np.inf or seed < 0 or first < 1 or session < 0:
        raise UserError("simulate: give at least one device, some seconds, and no negative seed, session or first")
    if not any(mix.get(activity, 0) > 0 for activity in ACTIVITIES) or not 2 <= bout_seconds[0] <= bout_seconds[1]:
        raise UserError(f"simulate: bouts last 2 s or more, and the mix needs one of {', '.join(ACTIVITIES)} above 0")
    return [
        _recorded(walker(seed, number), number, seconds, (seed, session), start_ts, bout_seconds, mix)
        for number in range(first, first + devices)
    ]


def walker(seed: int, number: int) -> Walker:
    """The person of that number: the same for ever, whatever is simulated of them."""
    rng = np.random.default_rng([seed, number])
    pocket = rng.normal(0.0, 0.15, 3)
    pace, vigour, loud = rng.normal(1.0, 0.045), np.exp(rng.normal(0.0, 0.12)), np.exp(rng.normal(0.0, 0.15))
    axes = np.exp(rng.normal(0.0, 0.18, 3))
    habits = {
        activity: _habit(gait, rng, pocket=pocket, pace=pace, size=vigour * axes, loud=loud)
        for activity, gait in _GAITS.items()
    }
    person = Person(
        f"sim-{number:02d}",
        weight=float(np.round(rng.normal(72, 12), 1)),
        height=float(np.round(rng.normal(174, 9))),
        age=float(rng.integers(20, 60)),
        gender=int(rng.integers(2)),
    )
    return Walker(person, habits, rng.normal(0.0, 0.01, 3))


def _habit(gait: Gait, rng: Generator, *, pocket: Floats, pace: float, size: Floats, loud: float) -> Habit:
    step = gait.step * pace * rng.normal(1.0, 0.025)
    shape = np.asarray(gait.shape) * np.exp(rng.normal(0.0, 0.22, (3, _HARMONICS)))
    phases = _PHASES * (1 - gait.peaked) + rng.normal(0.0, 0.35, (3, _HARMONICS))
    swing = _SWING_SHAPE * np.exp(rng.normal(0.0, 0.22, (3, _HARMONICS)))
    swing_phases = _SWING_PHASES + rng.normal(0.0, 0.35, (3, _HARMONICS))
    strides = np.exp(rng.normal(0.0, 0.15, 3))
    rattle = _RATTLE_SHAPE * np.exp(rng.normal(0.0, 0.22, (3, _HARMONICS)))
    rattle_phases = rng.uniform(-np.pi, np.pi, (3, _HARMONICS))
    rates = np.pi * step * np.arange(1, _HARMONICS + 1)  # rad/s of each harmonic: the stride is half the step
    posture = np.array([gait.roll, gait.pitch, -np.pi / 2]) + pocket + rng.normal(0.0, 0.12, 3)
    # An angle's sd is its rate's divided by how fast it turns.
    turning = np.sqrt((swing**2 * rates**2).sum(1) / (swing**2).sum(1)) if step else np.ones(3)
    sizes = np.asarray(gait.swing) * strides
    return Habit(
        gait,
        step,
        _coefficients(shape, phases, np.asarray(gait.shake) * size),
        _coefficients(swing, swing_phases, sizes / turning),
        _coefficients(rattle, rattle_phases, sizes * _RATTLE),
        posture,
        gait.noise * loud,
    )


def _coefficients(shape: Floats, phases: Floats, sd: Floats) -> Floats:
    """(20, 3) of cos(kφ) and sin(kφ) for Σ shape cos(kφ + phase) of the given (3,) standard deviations."""
    power = np.sqrt((shape**2).sum(1) / 2)
    scaled = shape * np.divide(sd, power, out=np.zeros(3), where=power > 0)[:, None]
    return np.concatenate([scaled * np.cos(phases), -scaled * np.sin(phases)], 1).T


def _recorded(
    walker: Walker,
    number: int,
    seconds: float,
    seeds: tuple[int, int],
    start_ts: float,
    bout_seconds: tuple[float, float],
    mix: Mapping[Activity, float],
) -> Recording:
    wanted = max(1, round(seconds * SAMPLE_RATE_HZ))
    seed, session = seeds
    bouts: list[_Bout] = []
    # A little more than wanted, so that the end of a short recording is the middle of a longer one.
    rows = 0
    for bout, (activity, length) in enumerate(_diary([seed, number, session, 0], bout_seconds, mix), start=1):
        rng = np.random.default_rng([seed, number, session, bout])
        bouts.append(_bout(activity, length, walker.habits, rng))
        rows += length
        if rows > wanted + SAMPLE_RATE_HZ:
            break
    values = _joined(bouts, walker.bias)[:wanted]
    lengths = [len(bout.posture) for bout in bouts]
    return Recording(
        f"phone-{number:02d}",
        walker.person,
        start_ts + np.arange(wanted) / SAMPLE_RATE_HZ,
        values,
        np.repeat([LABEL_CODES[bout.activity] for bout in bouts], lengths)[:wanted],
        np.repeat(np.arange(1, len(bouts) + 1), lengths)[:wanted],
    )


def _diary(
    seeds: list[int], bout_seconds: tuple[float, float], mix: Mapping[Activity, float]
) -> Iterator[tuple[Activity, int]]:
    """Activities and how many readings each takes, for ever; never the same twice in a row."""
    rng = np.random.default_rng(seeds)
    last: Activity | None = None
    while True:
        choice = [activity for activity in ACTIVITIES if mix.get(activity, 0) > 0 and activity != last]
        if choice:  # else the mix has one activity only
            share = np.array([mix[activity] for activity in choice])
            last = choice[int(rng.choice(len(choice), p=share / share.sum()))]
        assert last is not None
        yield last, round(rng.uniform(*bout_seconds) * SAMPLE_RATE_HZ)


def _bout(activity: Activity, n: int, habits: Mapping[Activity, Habit], rng: Generator) -> _Bout:
    habit = habits[activity]
    gait = habit.gait
    moving = habit.step > 0
    posture = habit.posture + rng.normal(0.0, 0.09, 3)
    wander = _knots(rng, n, 4.0, 0.03) + _knots(rng, n, 0.6, gait.sway)
    turning = _knots(rng, n, 3.0, 0.25 if moving else 0.01)[:, 0]
    noise = _coloured(rng, n) * habit.noise
    if not moving:
        still = np.zeros((n, 3))
        shifts, jolts = _fidgets(rng, n)
        return _Bout(activity, posture + wander + shifts, turning, still, still, noise * (1 + 12 * jolts), still)
    vigour = np.exp(rng.normal(0.0, 0.09))
    speed = habit.step * rng.normal(1.0, 0.03) * np.exp(_knots(rng, n, 2.0, 0.03)[:, 0])
    phase = rng.uniform(0, 2 * np.pi) + np.cumsum(np.pi * speed) / SAMPLE_RATE_HZ
    basis = _basis(phase)
    size = vigour * np.exp(_by_stride(rng, phase, gait.uneven)) * _fade(n)
    shake, swing, rattle = (basis @ part for part in (habit.shake, habit.swing, habit.rattle))
    if gait.landings:
        level = _landings(rng, n, gait.landings)[:, None]
        walking = habits["wlk"]
        shake += level * (basis @ walking.shake - shake)
        swing += level * (basis @ walking.swing - swing)
    return _Bout(
        activity,
        posture + wander,
        turning,
        swing * size[:, None],
        shake * size[:, None],
        noise,
        rattle * size[:, None],
    )


def _basis(phase: Floats) -> Floats:
    """(n, 20): cos(kφ) for k = 1…10, then sin(kφ)."""
    powers = np.empty((_HARMONICS, len(phase)), complex)
    powers[:] = np.exp(1j * phase)
    np.multiply.accumulate(powers, axis=0, out=powers)
    return np.concatenate([powers.real, powers.imag]).T


def _knots(rng: Generator, n: int, seconds: float, sd: float) -> Floats:
    """(n, 3) random values every so many seconds, straight lines between them."""
    every = seconds * SAMPLE_RATE_HZ
    knots = rng.normal(0.0, sd, (int(n / every) + 2, 3))
    at = np.arange(n) / every
    return np.stack([np.interp(at, np.arange(len(knots)), knots[:, axis]) for axis in range(3)], 1)


def _coloured(rng: Generator, n: int) -> Floats:
    white = rng.standard_normal((n + len(_AR_KERNEL) - 1, 3))
    return np.stack([np.convolve(white[:, axis], _AR_KERNEL, "valid") for axis in range(3)], 1)


def _by_stride(rng: Generator, phase: Floats, sd: float) -> Floats:
    """(n,) a value that each stride draws anew; lines between the middles of strides."""
    strides = (phase - phase[0]) / (2 * np.pi)
    drawn = rng.normal(0.0, sd, int(strides[-1]) + 3)
    return np.asarray(np.interp(strides, np.arange(len(drawn)), drawn))


def _fade(n: int) -> Floats:
    """(n,) 0 at both ends, 1 between."""
    edge = np.minimum(np.arange(n), np.arange(n)[::-1]) / (_FADE_S * SAMPLE_RATE_HZ)
    return np.asarray(0.5 - 0.5 * np.cos(np.pi * np.minimum(edge, 1.0)))


def _landings(rng: Generator, n: int, share: float) -> Floats:
    """(n,) 1 where stairs are level: landings of 1.5 to 2.5 s, as far apart as their share has it."""
    level = np.zeros(n)
    at = rng.uniform(0, 2 / share)
    while at * SAMPLE_RATE_HZ < n:
        lasts = rng.uniform(1.5, 2.5)
        level[int(at * SAMPLE_RATE_HZ) : int((at + lasts) * SAMPLE_RATE_HZ)] = 1.0
        at += lasts + rng.uniform(0.6, 1.4) * 2.0 * (1 - share) / share
    return np.asarray(np.convolve(level, _hann(0.5), "same")) if n > 2 * SAMPLE_RATE_HZ else level


def _fidgets(rng: Generator, n: int) -> tuple[Floats, Floats]:
    """A shift of posture (n, 3) in rad every 25 s or so, and how much it jolts (n, 1), 0 to 1."""
    shifts, jolts = np.zeros((n, 3)), np.zeros((n, 1))
    for at in np.flatnonzero(rng.random(n) < 1 / (25 * SAMPLE_RATE_HZ)):
        shifts[at:] += rng.normal(0.0, 0.04, 3)
        jolt = np.hanning(round(rng.uniform(0.6, 1.6) * SAMPLE_RATE_HZ))[: n - at, None]
        jolts[at : at + len(jolt)] += jolt * rng.uniform(0.3, 1.0)
    return shifts, jolts


def _hann(seconds: float) -> Floats:
    kernel = np.hanning(round(seconds * SAMPLE_RATE_HZ) | 1)
    return np.asarray(kernel / kernel.sum())


def _joined(bouts: list[_Bout], bias: Floats) -> Floats:
    """(n, 12) readings of bouts one after the other, columns as in `schemas.activity.CHANNEL_NAMES`.

    With roll r, pitch p, yaw y: rotation rate (p' cos r − y' cos p sin r, r' + y' sin p, p' sin r + y' cos p cos r),
    plus the pocket's rattle; up is −gravity, forward and sideways are level and turn with the heading.
    """
    posture = np.concatenate([bout.posture for bout in bouts])
    kernel = _hann(_POSTURE_S)
    reach = len(kernel) // 2
    padded = np.pad(posture, ((reach, reach), (0, 0)), mode="edge")
    attitude = np.stack([np.convolve(padded[:, axis], kernel, "valid") for axis in range(3)], 1)
    attitude += np.concatenate([bout.swing for bout in bouts])
    sin_y, cos_y = np.sin(-attitude[:, 2]), np.cos(-attitude[:, 2])
    attitude[:, 2] += np.cumsum(np.concatenate([bout.turning for bout in bouts])) / SAMPLE_RATE_HZ
    rates = np.gradient(attitude, 1 / SAMPLE_RATE_HZ, axis=0)
    (roll, pitch, _), (roll_rate, pitch_rate, yaw_rate) = attitude.T, rates.T
    sin_r, cos_r, sin_p, cos_p = np.sin(roll), np.cos(roll), np.sin(pitch), np.cos(pitch)

    values = np.empty((len(attitude), len(CHANNEL_NAMES)))
    rotation = values[:, ROTATION]
    rotation[:, 0] = pitch_rate * cos_r - yaw_rate * cos_p * sin_r
    rotation[:, 1] = roll_rate + yaw_rate * sin_p
    rotation[:, 2] = pitch_rate * sin_r + yaw_rate * cos_p * cos_r
    rotation += np.concatenate([bout.rattle for bout in bouts])
    noise = np.concatenate([bout.noise for bout in bouts])
    rotation += noise[:, [1, 2, 0]]  # what shakes a phone turns it a little

    gravity = gravity_of(attitude)
    up, forward, sideways = np.concatenate([bout.shake for bout in bouts]).T
    level_x, level_y = forward * cos_y - sideways * sin_y, forward * sin_y + sideways * cos_y
    acceleration = values[:, ACCELERATION]
    acceleration[:, 0] = level_x * cos_r + level_y * sin_p * sin_r
    acceleration[:, 1] = level_y * cos_p
    acceleration[:, 2] = level_x * sin_r - level_y * sin_p * cos_r
    acceleration += noise + bias - up[:, None] * gravity

    values[:, GRAVITY] = gravity
    values[:, ATTITUDE] = _canonical(attitude)
    return values


def _canonical(attitude: Floats) -> Floats:
    """The same attitudes as a phone reports them: pitch within ±π/2, roll and yaw within ±π."""
    over = np.cos(attitude[:, 1]) < 0
    turned = attitude + np.where(over[:, None], np.pi, 0.0)
    turned[over, 1] = np.pi - attitude[over, 1]
    return np.asarray((turned + np.pi) % (2 * np.pi) - np.pi)
