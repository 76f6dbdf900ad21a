"""The measurements themselves: figures that nobody can trust are worse than none."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.integration.agent_process import ROOT


def test_the_agent_and_a_loop_written_by_hand_find_the_same_drifts_on_the_same_topic(tmp_path):
    """Speeds may be compared only where the work is the same, and its outcome is what river finds by itself."""
    report = tmp_path / "throughput.json"
    command = [sys.executable, "-m", "tests.bench.throughput", "--only", "driftloop,confluent-loop"]
    command += ["--readings", "100000", "--rounds", "1", "--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(report.read_text())
    assert measured["figures"]["disagreeing"] == 0
    rows = {(row["name"], row["workload"]): row for row in measured["rows"]}
    assert rows.keys() == {(name, kind) for name in ("driftloop", "confluent-loop") for kind in ("single", "batch50")}
    for row in rows.values():
        assert row["drifts"] > 20
        assert row.keys() >= {"name", "workload", "readings_per_s", "cpu_s_per_million", "min", "max"}
        assert 0 < row["min"] <= row["readings_per_s"] <= row["max"]
        assert row["cpu_s_per_million"] > 0
