"""The demo's own figures: seconds from drift to a better model in service, accuracies, memory of the stack."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.report import Measurement, parser, show


def main() -> None:
    """Run the demo so many times, each in a home of its own."""
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--data", type=Path, help="MotionSense recordings instead of the simulator")
    given = arguments.parse_args()
    rows = []
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as home:
            command = [sys.executable, "-m", "workers.cli", "demo", "--json"]
            command += ["--data", str(given.data.resolve())] if given.data else []
            said = subprocess.run(
                command, env={**os.environ, "DRIFTLOOP_HOME": home}, stdout=subprocess.PIPE, text=True, check=False
            )
        report = json.loads(said.stdout)
        rows.append(
            {"closed": report["closed"], **report["accuracy"], **report["seconds"], "peak_mib": report["peak_mib"]}
        )
    settings = {"rounds": given.rounds, "data": "MotionSense" if given.data else "synthetic"}
    show(Measurement("loop", settings, {"closed": sum(row["closed"] for row in rows)}, rows), given.json)


if __name__ == "__main__":
    main()
