"""`python -m tests.bench [MotionSense]`: every measurement with its defaults, one after the other.

Those of real people need their recordings: a zip or a folder, as the README says where to get them.
"""

import subprocess
import sys
from pathlib import Path

for path in sorted(Path(__file__).parent.glob("*.py")):
    text = path.read_text()
    if path.name == "__main__.py" or 'if __name__ == "__main__":' not in text:
        continue
    people = sys.argv[1:2] if '"--data", type=Path, required=True' in text else None
    if people == []:
        print(f"{path.stem}: left out, for it needs recordings: python -m tests.bench PATH", flush=True)
        continue
    data = ["--data", *people] if people else []
    subprocess.run([sys.executable, "-m", f"tests.bench.{path.stem}", *data], check=True)
