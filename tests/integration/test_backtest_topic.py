"""`driftloop backtest --topic`: what the settings would have done with the readings that Kafka holds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from schemas.errors import UserError
from streams import topics
from streams.inject import apply, parse_drift
from streams.producer import produce
from streams.simulator import simulate
from tests.integration.worker_processes import environment
from workers.backtest_policies import lives_of_topic
from workers.cli import app

DEVICES, SECONDS, DRIFT_S = 2, 1500.0, 900.0


def test_a_topics_readings_are_judged_and_policies_compared_on_them(settings, tmp_path, monkeypatch):
    """A policy is best tried on one's own readings, and those are on the topic."""
    topics.create(settings)
    people = simulate(DEVICES, SECONDS, 5, 1.7e9, bout_seconds=(12.0, 30.0))
    drifted = [apply(each, parse_drift(f"noise:0.3@{DRIFT_S}"), np.random.default_rng(1)) for each in people]
    assert produce(settings, drifted, batch=50).complete
    never, eager = tmp_path / "never.env", tmp_path / "eager.env"
    never.write_text("DRIFTLOOP_RETRAIN_POLICY=never\n")
    eager.write_text("DRIFTLOOP_RECENT_WINDOWS=60\nDRIFTLOOP_RECENT_ACTIVITIES=2\n")
    monkeypatch.chdir(tmp_path)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    asked = ["backtest", "--topic", "--policy", str(never), "--policy", str(eager), "--json"]
    told = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert told.exit_code == 0
    rows = json.loads(told.stdout)["policies"]
    assert [(row["policy"], row["devices"]) for row in rows] == [("never", DEVICES), ("eager", DEVICES)]
    for row in rows:
        assert row["hours"] == pytest.approx(DEVICES * SECONDS / 3600, abs=0.02)
        assert row["alarms"] >= DEVICES, "each device has drifted"
    assert [row["retrains"] >= DEVICES for row in rows] == [False, True]


def test_a_topic_without_readings_is_said_to_be_empty(settings):
    """Zero alarms of nothing would read as a clean bill of health."""
    topics.create(settings)
    with pytest.raises(UserError, match="no readings"):
        lives_of_topic(settings)
