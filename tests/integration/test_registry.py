"""The registry against a real MLflow: looked up before made, and its failures named."""

from __future__ import annotations

import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from schemas.errors import Reject, Retry
from tests.integration.worker_processes import changed, registered_version
from workers import registry, retrain_job, retrain_task
from workers.retrain_task import Champion, Decline, Result


@pytest.fixture
def ready(settings, mlflow_uri):
    return changed(settings, model=f"m{uuid.uuid4().hex[:8]}")


@pytest.fixture
def client(ready):
    return registry.connect(ready)


def aliases(client, settings):
    return {name: str(version) for name, version in client.get_registered_model(settings.model).aliases.items()}


def test_what_was_registered_for_an_event_is_found_again_as_it_was_told(ready, client):
    """A redelivered event must lead to the same version and the same content, to the byte."""
    assert registry.registered_for(client, ready.model, "event") is None
    made = registered_version(ready, "event")
    assert registry.registered_for(client, ready.model, "event") == made
    assert registry.registered_for(client, ready.model, "another") is None
    assert registry.registered_for(client, f"{ready.model}-x", "event") is None


def test_aliases_say_who_serves_who_may_come_and_where_to_go_back_to(ready, client):
    """People and programs resolve `models:/…@champion`; doing it again changes nothing."""
    registered_version(ready, "a")
    registered_version(ready, "b")
    assert aliases(client, ready) == {"challenger": "2"}
    for _ in range(2):
        registry.set_champion(client, ready.model, "1", None)
        assert aliases(client, ready) == {"champion": "1", "challenger": "2"}
    for _ in range(2):
        registry.set_champion(client, ready.model, "2", "1")
        assert aliases(client, ready) == {"champion": "2", "previous": "1"}


def test_runs_that_a_crash_left_open_are_ended_as_failed_and_no_others(ready, client):
    """A run that looks alive for ever hides the ones that are."""
    registered_version(ready, "done")
    experiment = client.get_experiment_by_name(ready.model).experiment_id
    opened = {name: client.create_run(experiment, tags={"drift.event_id": name}).info.run_id for name in ("a", "b")}
    registry.close_unfinished(client, ready.model, "a")
    assert client.get_run(opened["a"]).info.status == "FAILED"
    assert client.get_run(opened["b"]).info.status == "RUNNING"
    registry.close_unfinished(client, "no-such-model", "a")


def test_an_attempt_that_registered_nothing_is_known_again_with_what_was_decided(ready, client):
    """A crash between the record and the event must not pay for the training twice, nor end it otherwise."""
    assert registry.judged_before(client, ready.model, "event", 0) is None
    registry.record_rejected(
        registry.Training("event", 1, "rejected", '{"outcome": "rejected"}', {}, {}, {"recent": []}, [], {}),
        ready.model,
    )
    registered_version(ready, "another")
    assert registry.judged_before(client, ready.model, "event", 1) == '{"outcome": "rejected"}'
    assert registry.judged_before(client, ready.model, "event", 0) is None, "that attempt is still to be made"
    assert registry.judged_before(client, ready.model, "another", 0) is None, "a version is looked for elsewhere"


def test_what_somebody_has_deleted_is_rejected_by_name_instead_of_asked_for_again(ready, client, tmp_path):
    """Nothing will bring it back, so waiting for it would block all that comes after."""
    made = registered_version(ready, "event")
    client.delete_model_version(ready.model, made.version)
    with pytest.raises(Reject, match="unknown-version"):
        registry.download(client, f"models:/{ready.model}/{made.version}", tmp_path)
    with pytest.raises(Reject, match="unknown-version"):
        registry.set_champion(client, ready.model, made.version, None)
    with pytest.raises(Reject, match="unknown-version"):
        registry.set_champion(client, "no-such-model", "1", None)


def test_an_mlflow_that_is_away_is_a_retry_within_seconds(ready, client, monkeypatch):
    """MLflow's own patience is four minutes, in which a worker could not even be stopped."""
    away = registry.connect(changed(ready, mlflow_tracking_uri="http://127.0.0.1:1"))
    try:
        begun = time.monotonic()
        with pytest.raises(Retry, match="MLflow"):
            registry.registered_for(away, ready.model, "event")
        assert time.monotonic() - begun < 15
    finally:
        registry.connect(ready)


class _Broken(BaseHTTPRequestHandler):
    """An MLflow, or the proxy before it, that has broken down."""

    def do_GET(self):
        self.send_error(503)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("answers", [True, False])
def test_an_mlflow_that_breaks_or_hangs_is_a_retry(ready, client, monkeypatch, answers):
    """It is the world that is not ready: nothing of ours may be dead-lettered or called failed for it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Broken)  # listens even while nobody serves
    if answers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    broken = registry.connect(changed(ready, mlflow_tracking_uri=f"http://127.0.0.1:{server.server_port}"))
    try:
        with pytest.raises(Retry, match="MLflow"):
            registry.registered_for(broken, ready.model, "event")
        with pytest.raises(Retry, match="MLflow"):
            registry.set_champion(broken, ready.model, "1", None)
    finally:
        registry.connect(ready)
        if answers:
            server.shutdown()
        server.server_close()


def test_a_champion_whose_files_are_gone_ends_a_training_with_a_reason(ready, client, tmp_path):
    """Nothing can be shown to be better than what nobody can ask; and waiting would not bring it back."""
    made = registered_version(ready, "event")
    client.delete_model_version(ready.model, made.version)
    with pytest.raises(Decline) as told:
        retrain_job._champion(Champion(made.version, made.digest), client, ready, tmp_path)
    assert (told.value.declined.outcome, told.value.declined.reason) == ("failed", "champion-unusable")


def test_a_training_on_a_full_disk_is_done_again(ready, client, monkeypatch, tmp_path):
    """Room can be made; the drift must not have been answered with a failure meanwhile."""
    for name in ("kafka_bootstrap", "namespace", "model"):
        monkeypatch.setenv(f"DRIFTLOOP_{name.upper()}", str(getattr(ready, name)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ready.mlflow_tracking_uri)
    monkeypatch.setattr(retrain_job, "_end_with_parent", lambda folder: None)
    made = registered_version(ready, "event")
    (tmp_path / retrain_task.TASK).write_bytes(msgspec.json.encode(retrain_task.Task("event")))
    assert retrain_job.main(tmp_path) == 0
    assert msgspec.json.decode((tmp_path / retrain_task.RESULT).read_bytes(), type=Result).registered == made
    (tmp_path / retrain_task.RESULT).unlink()
    (tmp_path / retrain_task.RESULT).symlink_to("/dev/full")
    assert retrain_job.main(tmp_path) == retrain_task.RETRY_EXIT


def test_a_disk_that_is_full_is_waited_for(ready, client, tmp_path):
    """Room can be made; a model that was refused for want of it would never be deployed."""
    made = registered_version(ready, "event")
    full = tmp_path / "full"
    full.write_text("a file where a folder should be")
    with pytest.raises(Retry, match="cannot be kept here"):
        registry.download(client, f"models:/{ready.model}/{made.version}", full / "folder")


def test_a_champion_is_loaded_only_if_a_key_that_we_trust_has_signed_it(ready, client, tmp_path):
    """Whoever can write to MLflow could otherwise have code run in the retrain worker, by being compared with."""
    made = registered_version(ready, "event")
    files = registry.trusted_files(client, ready, made.version, made.digest, tmp_path / "good")
    assert (files / "model.skops").exists()

    def refused(why, digest=made.digest, settings=ready):
        with pytest.raises(Reject, match=why):
            registry.trusted_files(client, settings, made.version, digest, tmp_path / "refused")
        assert not (tmp_path / "refused").exists(), "refused before it was fetched"

    refused("bad-signature", digest="sha256:" + "0" * 64)
    refused("unknown-key", settings=changed(ready, home=tmp_path / "another-home"))
    client.set_model_version_tag(ready.model, made.version, "driftloop.signature", '{"signature": "AAAA"}')
    refused("unsigned")
    client.delete_model_version_tag(ready.model, made.version, "driftloop.signature")
    refused("unsigned")
