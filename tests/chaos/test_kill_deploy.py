"""The short form of `python -m tests.chaos.kill_deploy`: a deploy worker that dies on the way, real servers."""

from tests.chaos import kill_deploy


def test_a_worker_killed_at_a_named_point_leaves_one_version_and_no_failed_request(
    tmp_path, kafka_bootstrap, mlflow_uri
):
    """Before the commit and after the switch: what was done is adopted, neither undone nor done twice."""
    addresses = {"DRIFTLOOP_KAFKA_BOOTSTRAP": kafka_bootstrap, "MLFLOW_TRACKING_URI": mlflow_uri}
    points = ["jobs.before-commit", "deploy.switched"]
    figures = kill_deploy.measure(tmp_path, "process", points, 1, addresses).figures
    assert figures["killed_at_point"] == len(points)
    assert (figures["max_events_per_id"], figures["live_deployments"], figures["orphans"]) == (1, 1, 0)
    assert figures["requests"] > 0
    assert figures["failed"] == 0
