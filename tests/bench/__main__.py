"""`python -m tests.bench`: every measurement with its defaults, one after the other."""

import subprocess
import sys
from pathlib import Path

for program in sorted(
    path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__main__", "report", "traffic")
):
    subprocess.run([sys.executable, "-m", f"tests.bench.{program}"], check=True)
