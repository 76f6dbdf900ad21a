"""The loop over a recording without Kafka: what a policy would have done."""

import numpy as np
import pytest

from schemas.errors import UserError
from schemas.settings import Settings
from streams.drift import Change
from streams.inject import apply, parse_drift
from streams.quality import Degraded
from streams.simulator import simulate
from streams.windows import Readings, cut, empty_readings
from workers.backtest_policies import Life, compare, draw, policy_settings
from workers.controller import Policy
from workers.rehearsal import rehearse

START, DRIFT_S = 1.7e9, 400.0


@pytest.fixture(scope="module")
def windows():
    [played] = simulate(1, 1200.0, 5, START, bout_seconds=(12.0, 30.0), mix=dict.fromkeys(("wlk", "sit", "std"), 1.0))
    played = apply(played, parse_drift(f"noise:0.3@{DRIFT_S}"), np.random.default_rng(1))
    return cut(Readings(played.ts, played.values, played.labels, np.arange(len(played))))[0]


@pytest.fixture
def settings():
    return Settings(_env_file=None, recent_windows=60, recent_activities=2)


def change(ts, offset):
    return Change("gravity.x", "mean", "statistic", 0.0, 1.0, 5.0, START + ts, START + ts - 20, offset, offset - 1000)


def test_a_drift_is_counted_as_a_training_once_enough_windows_have_come(windows, settings):
    """A backtest that trained at the alarm would promise a delay that nobody gets."""
    done = rehearse(windows, [change(450, 22_500)], "p", None, (), Policy(), settings)
    [training] = done.trainings
    assert training.outcome == "promoted"
    assert training.pinned >= START + 450
    assert training.pinned - (START + 430) >= 60 * 1.28 - 1


def test_what_drifts_during_cooldown_is_deferred_and_trained_on_later(windows, settings):
    """The same controller as the worker's, so the same patience."""
    found = [change(450, 22_500), change(650, 32_500)]
    done = rehearse(windows, found, "p", None, (), Policy(cooldown_s=300), settings)
    assert [reason for _, _, reason, _ in done.decisions] == ["counted", "cooldown", "counted"]
    assert done.trainings[1].begun >= done.trainings[0].ended + 300


def test_a_broken_sensor_is_not_trained_on_in_a_rehearsal_either(windows, settings):
    """Else the backtest would recommend what the worker refuses."""
    found = [Degraded("gravity.x", "stuck", START + 440, 22_000), change(450, 22_500)]
    done = rehearse(windows, found, "p", None, (), Policy(), settings)
    assert not done.trainings
    assert {reason for _, _, reason, _ in done.decisions} == {"quality"}


def test_policies_stand_side_by_side_and_the_same_twice(windows, settings, tmp_path):
    """A comparison that changes between two looks compares nothing."""
    life = Life("p", "noise 0.3", START + 200, START + DRIFT_S, empty_readings(), windows)
    policies = {
        "in force": settings.model_copy(update={"activity_source": "label", "calibration_seconds": 200}),
        "never": settings.model_copy(update={"retrain_policy": "never", "detector": "per-feature"}),
    }
    (rows, told), (again, _) = compare([life], None, policies), compare([life], None, policies)
    for row in (*rows, *again):
        assert row.pop("compute_seconds") > 0
        assert row.pop("times_real_time") > 0
    assert rows == again
    assert [row["policy"] for row in rows] == ["in force", "never"]
    assert rows[1]["retrains"] == 0
    assert rows[1]["alarms"] > 0
    for name in ("f.png", "f.svg", "f.html"):
        draw(told, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5_000
    with pytest.raises(UserError, match="end it in"):
        draw(told, tmp_path / "f.pdf")


def test_a_policy_file_is_settings_and_what_is_none_is_named(tmp_path, monkeypatch):
    """A misspelt setting would silently compare a policy with itself."""
    monkeypatch.chdir(tmp_path)
    good, bad = tmp_path / "good.env", tmp_path / "bad.env"
    good.write_text("DRIFTLOOP_COOLDOWN_SECONDS=77\n# why\nDRIFTLOOP_RETRAIN_POLICY=periodic\n")
    bad.write_text("DRIFTLOOP_COOLDWN_SECONDS=77\n")
    found = policy_settings(good)
    assert (found.cooldown_seconds, found.retrain_policy) == (77, "periodic")
    with pytest.raises(UserError, match="DRIFTLOOP_COOLDWN_SECONDS is no setting"):
        policy_settings(bad)
    with pytest.raises(UserError, match="no such file"):
        policy_settings(tmp_path / "none.env")
