"""`python -m tests.bench`: every measurement with its defaults, one after the other."""

import subprocess
import sys
from pathlib import Path

for path in sorted(Path(__file__).parent.glob("*.py")):
    if path.name != "__main__.py" and 'if __name__ == "__main__":' in path.read_text():
        subprocess.run([sys.executable, "-m", f"tests.bench.{path.stem}"], check=True)
