"""`driftloop run agent` that notes every few milliseconds where its main thread is; $BENCH_SAMPLES gets the counts.

A signal's handler runs where the interpreter is, so a call into C counts for the line that made it.
"""

import json
import os
import signal
import sysconfig
import time
from collections import Counter
from pathlib import Path

from workers.cli import main

EVERY_S = 0.002
OUT = Path(os.environ["BENCH_SAMPLES"])
ROOT = str(Path(__file__).parents[3])
LIBRARIES = sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]


class Sampler:
    """Handler of SIGALRM. counts: samples by place, written to OUT now and then."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.places: dict[str, str | None] = {}
        self.written = 0.0

    def place(self, file: str) -> str | None:
        """`streams.gate` for our own files, `aiokafka.consumer` for libraries', None for Python's own."""
        if file not in self.places:
            inside = next((file[len(folder) + 1 :] for folder in (*LIBRARIES, ROOT) if file.startswith(folder)), None)
            self.places[file] = inside and ".".join(Path(inside).with_suffix("").parts[:2])
        return self.places[file]

    def __call__(self, number, frame) -> None:
        inner, found = frame, None
        # Our own file if one is on the stack, for what it asks of numpy is its own work; else the innermost library.
        while frame is not None:
            at = self.place(frame.f_code.co_filename)
            if at is not None and at.startswith("streams."):
                found = f"{at}:{frame.f_code.co_name}"
                break
            found = found or at
            frame = frame.f_back
        if inner.f_code.co_name == "select":
            found = "idle"
        self.counts[found or "python"] += 1
        if (now := time.monotonic()) - self.written > 0.25:
            self.written = now
            OUT.with_suffix(".new").write_text(json.dumps(self.counts))
            OUT.with_suffix(".new").replace(OUT)


signal.signal(signal.SIGALRM, Sampler())
signal.setitimer(signal.ITIMER_REAL, EVERY_S, EVERY_S)
main()
