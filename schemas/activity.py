"""Readings of the `activity` topic: the channel table, the two message shapes, and what makes one unacceptable.

Names and units are MotionSense's (github.com/mmalekzadeh/motion-sense): attitude in radians, gravity and
userAcceleration in g, rotationRate in rad/s, sampled at 50 Hz.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

SAMPLE_RATE_HZ: Final = 50.0
MAX_READINGS_PER_MESSAGE: Final = 1_000
MAX_MESSAGE_BYTES: Final = 256 * 1024

Activity = Literal["dws", "ups", "sit", "std", "wlk", "jog"]
ACTIVITIES: Final[tuple[Activity, ...]] = ("dws", "ups", "sit", "std", "wlk", "jog")

REJECT_CLASSES: Final = (
    "encoding",
    "syntax",
    "schema",
    "not-finite",
    "out-of-range",
    "out-of-order",
    "oversize",
    "device-mismatch",
)


@dataclass(frozen=True, slots=True)
class Channel:
    """One column of a reading. low, high: what the sensor can physically report, in `unit`."""

    name: str
    unit: str
    low: float
    high: float
    required: bool


# Attitude angles come from atan2 and asin, so ±π (a little more for rounding). Phones measure up to ±16 g and
# ±2,000 °/s (35 rad/s); beyond that a value is not a measurement, and one such value blinds ADWIN for good.
CHANNELS: Final[tuple[Channel, ...]] = (
    Channel("attitude.roll", "rad", -6.3, 6.3, True),
    Channel("attitude.pitch", "rad", -6.3, 6.3, True),
    Channel("attitude.yaw", "rad", -6.3, 6.3, True),
    Channel("gravity.x", "g", -1.5, 1.5, False),
    Channel("gravity.y", "g", -1.5, 1.5, False),
    Channel("gravity.z", "g", -1.5, 1.5, False),
    Channel("rotationRate.x", "rad/s", -60.0, 60.0, False),
    Channel("rotationRate.y", "rad/s", -60.0, 60.0, False),
    Channel("rotationRate.z", "rad/s", -60.0, 60.0, False),
    Channel("userAcceleration.x", "g", -32.0, 32.0, True),
    Channel("userAcceleration.y", "g", -32.0, 32.0, True),
    Channel("userAcceleration.z", "g", -32.0, 32.0, True),
)
CHANNEL_NAMES: Final[tuple[str, ...]] = tuple(channel.name for channel in CHANNELS)
ATTITUDE: Final = slice(0, 3)
GRAVITY: Final = slice(3, 6)
ROTATION: Final = slice(6, 9)
ACCELERATION: Final = slice(9, 12)


def field_of(channel: str) -> str:
    """The attribute of `Reading` and `ReadingBatch` that holds a channel: dots become underscores."""
    return channel.replace(".", "_")


_WIRE_NAMES: Final = {field_of(name): name for name in CHANNEL_NAMES}

Device = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z0-9._-]{1,64}\Z",
        description="Which sensor; also the Kafka key, so that a device's readings share a partition.",
    ),
]
Ts = Annotated[float, msgspec.Meta(description="Event time, seconds since the epoch.")]


class Reading(msgspec.Struct, rename=_WIRE_NAMES, omit_defaults=True):
    """One reading of one device, flat, with MotionSense's column names. Unknown fields are ignored."""

    device: Device
    ts: Ts
    attitude_roll: float
    attitude_pitch: float
    attitude_yaw: float
    userAcceleration_x: float
    userAcceleration_y: float
    userAcceleration_z: float
    seq: int | None = None
    gravity_x: float | None = None
    gravity_y: float | None = None
    gravity_z: float | None = None
    rotationRate_x: float | None = None
    rotationRate_y: float | None = None
    rotationRate_z: float | None = None
    subject: str | None = None
    weight: float | None = None
    height: float | None = None
    age: float | None = None
    gender: int | None = None
    trial: int | None = None
    act: Activity | None = None


Column = Annotated[list[float], msgspec.Meta(min_length=1, max_length=MAX_READINGS_PER_MESSAGE)]


class ReadingBatch(msgspec.Struct, rename=_WIRE_NAMES, omit_defaults=True):
    """Up to 1,000 readings of one device in one message: equally long arrays for ts, seq and every channel."""

    device: Device
    ts: Column
    attitude_roll: Column
    attitude_pitch: Column
    attitude_yaw: Column
    userAcceleration_x: Column
    userAcceleration_y: Column
    userAcceleration_z: Column
    seq: list[int] | None = None
    gravity_x: Column | None = None
    gravity_y: Column | None = None
    gravity_z: Column | None = None
    rotationRate_x: Column | None = None
    rotationRate_y: Column | None = None
    rotationRate_z: Column | None = None
    subject: str | None = None
    weight: float | None = None
    height: float | None = None
    age: float | None = None
    gender: int | None = None
    trial: int | None = None
    act: Activity | list[Activity | None] | None = None
