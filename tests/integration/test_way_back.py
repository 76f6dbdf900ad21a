"""A version that does not work, before or after the switch: real Kafka, MLflow, servers and router."""

from tests.chaos import broken_models


def test_a_broken_version_is_stopped_or_sent_back_while_the_champion_answers(tmp_path, kafka_bootstrap, mlflow_uri):
    """Two of the five kinds that `python -m tests.chaos.broken_models` breaks; nobody is awake to do it by hand."""
    addresses = {"DRIFTLOOP_KAFKA_BOOTSTRAP": kafka_bootstrap, "MLFLOW_TRACKING_URI": mlflow_uri}
    measured = broken_models.measure(tmp_path, ["garbage", "out-of-memory"], 1, addresses)
    assert measured.figures["stopped_before_the_switch"] == 2
    assert measured.figures["sent_back"] == 2
    assert measured.figures["champion_failed"] == 0
    assert {row["reason"] for row in measured.rows} <= {"smoke", "crashed", "not-ready", "silent"}
