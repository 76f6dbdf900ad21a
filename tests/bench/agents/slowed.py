"""`driftloop run agent` whose core sleeps whenever it is called: what piles up in the process when it cannot follow?"""

import os
import time

from streams.processor import Processor
from workers.cli import main

PAUSE_S = float(os.environ["BENCH_PAUSE_S"])
process = Processor.process


def slowly(self, *records, **more):
    time.sleep(PAUSE_S)
    return process(self, *records, **more)


Processor.process = slowly
main()
