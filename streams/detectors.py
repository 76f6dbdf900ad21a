"""The detectors by their setting's name (`DRIFTLOOP_DETECTOR`).

- `raw`: one ADWIN on each raw channel, as tutorials do. About 1,300 alarms an hour on real data, because walking and
  then sitting *is* a change of the mean and 50 Hz readings are autocorrelated.
- `per-feature`: one ADWIN on each of the ten window statistics. Tens of alarms an hour, for the same first reason.
- `confirmed`: statistics are compared with what this device showed before in the same activity; an ADWIN opens a
  candidate and gives the change point; it becomes an alarm when at least two later bouts and activities agree.
"""

from __future__ import annotations

from typing import Final

from schemas.settings import Settings
from streams.adwin import PerFeatureDetector, RawDetector
from streams.confirmed import Confirmed
from streams.drift import Kind

DETECTORS: Final[dict[str, Kind]] = {
    "raw": RawDetector,
    "per-feature": PerFeatureDetector,
    "confirmed": Confirmed(),
}


def kind_of(settings: Settings) -> Kind:
    """The kind that the settings ask for."""
    if settings.detector == "confirmed":
        return Confirmed(settings.policy, settings.activity_source, settings.calibration_seconds)
    return DETECTORS[settings.detector]
