"""Bytes that no corpus holds, for as long as asked: what they must never do is raise or reach a detector.

`python -m tests.chaos.fuzz [SECONDS]` begins with the corpus and lets atheris (coverage of `streams`) change it.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["streams.gate", "streams.intake", "json"]):
    from streams import gate, intake

from schemas.activity import CHANNELS, REJECT_CLASSES
from schemas.errors import Reject
from streams.records import Record, chunk_of
from tests.chaos.corpus import NOW, Templates, cases

MOST_BYTES = 4096


KEY = b"case-0000"
GOOD = Templates().good()


def try_out(value: bytes) -> None:
    """One message as it is and twice in a chunk behind a good one. Raises whatever the agent would have raised."""
    try:
        gate.decode(Record(1, NOW, KEY, value))
        expected = None
    except Reject as reject:
        assert reject.reject_class in REJECT_CLASSES, reject
        expected = reject.reject_class
    chunk = chunk_of([Record(1, NOW, KEY, GOOD), Record(2, NOW, KEY, value), Record(3, NOW, KEY, value)])
    names = intake.Names()
    rows, rejections = gate.decode_chunk(chunk, names)
    assert [each.reject_class for each in rejections] == ([] if expected is None else [expected] * 2)
    taking = intake.Intake()
    taking.reserve(len(names))
    taken = taking.take(rows, chunk)
    assert {each.reject_class for each in taken.rejections} <= set(REJECT_CLASSES)
    for channel, column in zip(CHANNELS, taken.readings.values.T, strict=True):
        there = column[~np.isnan(column)]
        assert ((there >= channel.low) & (there <= channel.high)).all(), channel
        assert len(there) == len(column) or not channel.required, channel


def main() -> None:
    """Ends with 0 unless something was found, which atheris prints and keeps in `crash-…`."""
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases()):
            if case.value and len(case.value) < MOST_BYTES:
                (Path(folder) / f"{number:04}").write_bytes(case.value.replace(case.key or b"-", KEY))
        # libFuzzer looks at the highest mark that Linux knows of, which a process inherits from whoever started it.
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 + 1024
        options = [f"-max_total_time={seconds}", f"-max_len={MOST_BYTES}", "-timeout=1", f"-rss_limit_mb={most}"]
        atheris.Setup([sys.argv[0], folder, *options], try_out)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
