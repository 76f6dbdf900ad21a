"""The scoring process of one model version: `python -m workers.serve`, started by a deployment target.

Here the serving app, which knows nothing of windows, meets the windows and features that the model was trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import numpy as np

from deploy.serving import create_app, listen, served
from schemas.activity import CHANNEL_NAMES, ROTATION, Reading
from schemas.errors import Reject
from streams.features import FEATURES, FEATURES_WITHOUT_ROTATION, features
from streams.gate import rows_of
from streams.intake import Intake, Names
from streams.records import Record, chunk_of
from streams.windows import Floats

_NEED_ROTATION: Final = "the model was trained with rotationRate; send it with every reading"


def featurise(readings: list[Reading], columns: tuple[str, ...]) -> tuple[Floats, Floats]:
    """Start of each window and its features, through the agent's own gate and windows.

    Raises Reject, its reason beginning with the field, for a reading that the agent would dead-letter.
    """
    devices = {reading.device for reading in readings}
    if len(devices) > 1:
        raise Reject("schema", f"readings: of {len(devices)} devices; windows are of one")
    chunk = chunk_of([Record(index, None, None, None) for index in range(len(readings))])
    names, intake = Names(), Intake()
    taken = intake.take(rows_of(readings, names), chunk)
    for rejection in taken.rejections:
        field, _, problem = rejection.reason.partition(" ")
        where = f"readings[{rejection.record.offset}].{field}"
        raise Reject(rejection.reject_class, f"{where}: {problem or 'must be finite'}")
    windows, accepted = taken.windows, taken.readings
    lacking = np.isnan(accepted.values[:, ROTATION]).any(1)
    if lacking.any() and not set(columns) <= set(FEATURES_WITHOUT_ROTATION):
        row = int(lacking.argmax())
        channel = CHANNEL_NAMES[ROTATION][int(np.isnan(accepted.values[row, ROTATION]).argmax())]
        raise Reject("schema", f"readings[{accepted.offsets[row]}].{channel}: {_NEED_ROTATION}")
    if not len(windows):
        return np.empty(0), np.empty((0, len(columns)))
    return windows.start, features(windows.values, columns)


def main() -> None:
    """Serve the folder that the arguments name, verified against its digest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--digest", required=True)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", required=True, type=int)
    given = parser.parse_args()
    model = served(given.model, given.version, given.digest, given.folder)
    unknown = set(model.columns) - set(FEATURES)
    if unknown:
        raise SystemExit(f"the model wants features that this program does not make: {', '.join(sorted(unknown)[:5])}")
    listen(create_app(model, featurise), given.host, given.port)


if __name__ == "__main__":
    main()
