"""A registered version becomes the one that answers, whatever dies on the way: real Kafka, MLflow and servers."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest

from deploy.local.programs import MARK, SERVING_MARK
from deploy.process import free_port
from schemas.envelope import envelope
from schemas.events import DecisionMade, ModelDeployed, ModelRegistered
from schemas.settings import Settings
from schemas.topology import CURRENT_MODEL, DECISIONS, DEPLOYED, MODEL_REGISTERED, dead_letters
from streams import topics
from tests.integration.worker_processes import (
    changed,
    environment,
    events,
    eventually,
    of_type,
    records,
    registered_version,
    send,
    worker,
)
from workers import registry


@pytest.fixture
def ready(settings: Settings, mlflow_uri: str) -> Iterator[Settings]:
    """Topics, a model name of this test's own, a router's port, and no server left behind."""
    made = changed(
        settings,
        model=f"m{uuid.uuid4().hex[:8]}",
        router_port=free_port(),
        grace_seconds=0.5,
        bake_seconds=0,
        health_port=free_port(),
    )
    topics.create(made)
    yield made
    for process in servers(made):
        process.kill()


def servers(settings: Settings) -> list[psutil.Process]:
    """The live scoring processes of this home."""
    found = []
    for process in psutil.process_iter():
        try:
            marks = process.environ()
            ours = marks.get(MARK) == str(settings.home.resolve()) and SERVING_MARK in marks
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def serving(settings: Settings) -> list[str]:
    return sorted(process.environ()[SERVING_MARK].rpartition("-v")[2] for process in servers(settings))


def announce(settings: Settings, registered: ModelRegistered) -> None:
    id = f"registered-{registered.version}"
    send(settings, MODEL_REGISTERED, envelope(registered, id=id, source="test", subject="", time=1.0, root="drift"))


def deployed(settings: Settings) -> list[str]:
    return [each.version for each in of_type(events(settings, DEPLOYED), ModelDeployed)]


def current(settings: Settings) -> ModelDeployed | None:
    found = of_type(events(settings, CURRENT_MODEL), ModelDeployed)
    return found[-1] if found else None


def decided(settings: Settings) -> list[tuple[str, str]]:
    return [(each.outcome, each.reason) for each in of_type(events(settings, DECISIONS), DecisionMade)]


def aliases(settings: Settings) -> dict[str, str]:
    found = registry.connect(settings).get_registered_model(settings.model).aliases
    return {name: str(version) for name, version in found.items()}


def doing(settings: Settings) -> str:
    try:
        return httpx.get(f"http://127.0.0.1:{settings.health_port}/live", trust_env=False).json()["doing"]
    except httpx.HTTPError:
        return ""


def artifacts(uri: str, registered: ModelRegistered, settings: Settings) -> Path:
    """The folder in MLflow's own store that holds the version's files."""
    client = registry.connect(settings)
    source = client.get_model_version(settings.model, registered.version).source
    wanted = source.rpartition("/")[2]
    port = int(uri.rpartition(":")[2].strip("/"))
    for process in psutil.process_iter():
        try:
            listens = any(each.laddr.port == port for each in process.net_connections("tcp") if each.status == "LISTEN")
            home = process.environ().get(MARK)
        except (psutil.Error, OSError):
            continue
        if listens and home:
            return next(path for path in Path(home).rglob(wanted) if path.is_dir())
    return pytest.skip("MLflow's files are somebody else's")


def test_a_registered_version_is_served_then_replaced_and_the_old_one_stopped(ready, tmp_path):
    """The switch: announced once, followed by the router, champion in the registry, and nothing of the old one left."""
    first = registered_version(ready, "event-1")
    announce(ready, first)
    with (
        worker(ready, "deploy", tmp_path / "deploy.log") as process,
        worker(changed(ready, health_port=0), "router", tmp_path / "router.log"),
    ):
        eventually(lambda: deployed(ready) == ["1"], what=(tmp_path / "deploy.log").read_text)
        eventually(lambda: aliases(ready) == {"champion": "1"})
        event = current(ready)
        assert (event.previous, event.reason, event.caused_by) == (None, "first", "registered-1")
        assert event.smoke.requests == 20
        assert httpx.get(f"{event.endpoint}/version", trust_env=False).json()["digest"] == first.digest

        announce(ready, registered_version(ready, "event-2", seed=1))
        eventually(lambda: deployed(ready) == ["1", "2"])
        eventually(lambda: serving(ready) == ["2"])
        eventually(lambda: aliases(ready) == {"champion": "2", "previous": "1"})
        assert (current(ready).previous, current(ready).reason) == ("1", "drift")
        address = f"{ready.router_url}/version"
        assert httpx.get(address, trust_env=False).json()["version"] == "2"
        announce(ready, first)
        eventually(lambda: decided(ready) == [("skipped", "older-version")])

        process.terminate()
        assert process.wait(25) == 0
        assert httpx.get(address, trust_env=False).json()["version"] == "2", "it serves without the worker"
    assert all(each.root == "drift" for each in events(ready, DEPLOYED))
    # The router needs nobody to tell it: not even Kafka.
    away = changed(ready, health_port=0, kafka_bootstrap="127.0.0.1:1")
    with worker(away, "router", tmp_path / "router.log"):
        assert eventually(lambda: version_at(address)) == "2"


def by_hand(settings: Settings, *arguments: str) -> tuple[int, str]:
    """`driftloop model …`: the exit code and what it says."""
    command = [sys.executable, "-m", "workers.cli", "model", *arguments]
    done = subprocess.run(
        command,
        env=environment(settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_hand_goes_back_and_forth_and_each_time_it_is_an_event(ready, tmp_path):
    """The way back is the last version that was deployed; whoever wants another one names it."""
    announce(ready, registered_version(ready, "event-1"))
    announce(ready, registered_version(ready, "event-2", seed=1))
    log = tmp_path / "deploy.log"
    with worker(ready, "deploy", log):
        eventually(lambda: deployed(ready) == ["1", "2"], 60, what=log.read_text)
        code, said = by_hand(ready, "rollback", "--from", "1")
        assert (code, "version 2 does" in said or "2 does" in said) == (1, True), said
        code, said = by_hand(ready, "rollback", "--reason", "it confuses stairs with walking")
        assert code == 0, said
        assert (current(ready).version, current(ready).previous, current(ready).reason) == ("1", "2", "rollback")
        code, said = by_hand(ready, "rollback")
        assert code == 1, "there is nothing before the first version"
        states = {each["version"]: each["state"] for each in json.loads(by_hand(ready, "list", "--json")[1])}
        assert states == {"1": "serving", "2": "left"}
        assert by_hand(ready, "promote", "9")[0] == 1
        code, said = by_hand(ready, "promote", "2", "--json")
        assert (code, json.loads(said)["reason"]) == (0, "manual")
        assert current(ready).version == "2"
    assert ("rolled-back", "manual") in decided(ready)
    assert deployed(ready) == ["1", "2", "1", "2"]


def version_at(address: str) -> str:
    try:
        return httpx.get(address, trust_env=False).json().get("version", "")
    except httpx.HTTPError:
        return ""


def test_what_must_not_be_served_is_refused_with_its_reason_and_the_current_version_stays(ready, tmp_path, mlflow_uri):
    """A changed byte, a wrong answer, a version that nobody registered: each a decision, none a crash."""
    announce(ready, registered_version(ready, "event-1"))
    with worker(ready, "deploy", tmp_path / "deploy.log") as process:
        eventually(lambda: deployed(ready) == ["1"], what=(tmp_path / "deploy.log").read_text)

        tampered = registered_version(ready, "event-2", seed=1)
        folder = artifacts(mlflow_uri, tampered, ready)
        file = next(folder.rglob("requirements.txt"))
        file.write_text(file.read_text() + "\n")
        announce(ready, tampered)
        eventually(lambda: decided(ready)[-1:] == [("refused", "digest-mismatch")])

        wrong = registered_version(ready, "event-3", seed=2)
        folder = artifacts(mlflow_uri, wrong, ready)
        smoke = next(folder.rglob("smoke.json"))
        swapped = smoke.read_text().replace('"sit"', '"?"').replace('"wlk"', '"sit"').replace('"?"', '"wlk"')
        smoke.write_text(swapped)
        forged = changed_digest(wrong, ready, tmp_path)
        announce(ready, forged)
        eventually(lambda: decided(ready)[-1:] == [("refused", "bad-signature")])
        announce(ready, registry.signing_key(ready).signed(forged))
        eventually(lambda: decided(ready)[-1:] == [("refused", "smoke")])

        gone = registered_version(ready, "event-4", seed=3)
        registry.connect(ready).delete_model_version(ready.model, gone.version)
        announce(ready, gone)
        eventually(lambda: decided(ready)[-1:] == [("refused", "unknown-version")])

        announce(ready, msgspec.structs.replace(gone, version="../../models"))
        announce(ready, msgspec.structs.replace(gone, version="²"))
        eventually(lambda: len(records(ready, dead_letters(MODEL_REGISTERED))) == 2)
        assert serving(ready) == ["1"]
        assert deployed(ready) == ["1"]
        assert process.poll() is None
    assert list((ready.home / "work").rglob("model*")) == []


def changed_digest(registered: ModelRegistered, settings: Settings, tmp_path: Path) -> ModelRegistered:
    """The event as somebody would send it who can change the files and the event, but not what the model says."""
    from deploy.modelfiles import digest

    folder = tmp_path / "changed"
    folder.mkdir()
    files = registry.download(registry.connect(settings), f"models:/{settings.model}/{registered.version}", folder)
    return msgspec.structs.replace(registered, digest=digest(files))


def test_a_worker_killed_in_the_middle_of_a_rollout_leaves_one_version_and_one_announcement(ready, tmp_path):
    """What it had started is adopted, not started again, and what it downloaded does not pile up."""
    announce(ready, registered_version(ready, "event-1"))
    log = tmp_path / "deploy.log"
    with worker(ready, "deploy", log) as process:
        eventually(lambda: servers(ready), what=log.read_text)
        process.kill()
    with worker(ready, "deploy", log):
        eventually(lambda: deployed(ready) == ["1"], what=log.read_text)
        eventually(lambda: aliases(ready) == {"champion": "1"})
        assert serving(ready) == ["1"]
        assert list((ready.home / "work").glob("*/*")) == []
    assert len(records(ready, DEPLOYED)) == 1


def test_a_serving_process_that_is_killed_is_brought_back_and_the_pointer_moves(ready, tmp_path):
    """The endpoint heals without an event: nobody registers a model because a process died."""
    announce(ready, registered_version(ready, "event-1"))
    log = tmp_path / "deploy.log"
    with worker(ready, "deploy", log):
        eventually(lambda: deployed(ready) == ["1"], what=log.read_text)
        before = current(ready)
        [process] = servers(ready)
        process.kill()
        eventually(lambda: current(ready).endpoint != before.endpoint, what=log.read_text)
        moved = current(ready)
        assert moved.version == "1"
        assert version_at(f"{moved.endpoint}/version") == "1"
        assert deployed(ready) == ["1"], "nothing new was deployed"


def test_an_absent_mlflow_is_waited_for_while_the_worker_says_so_and_serves_on(ready, tmp_path, mlflow_uri):
    """A registry that is away delays a deployment; it must not fail one, nor touch what serves."""
    announce(ready, registered_version(ready, "event-1"))
    log = tmp_path / "deploy.log"
    with worker(ready, "deploy", log):
        eventually(lambda: deployed(ready) == ["1"], what=log.read_text)
    second = registered_version(ready, "event-2", seed=1)
    away = changed(ready, mlflow_tracking_uri="http://127.0.0.1:1")
    with worker(away, "deploy", log) as process:
        announce(ready, second)
        eventually(lambda: doing(ready).startswith("waiting: MLflow"), what=log.read_text)
        assert process.poll() is None
        assert httpx.get(f"http://127.0.0.1:{ready.health_port}/live", trust_env=False).status_code == 200
        assert version_at(f"{current(ready).endpoint}/version") == "1"
        process.terminate()
        assert process.wait(25) == 0
    with worker(ready, "deploy", log):
        eventually(lambda: deployed(ready) == ["1", "2"], what=log.read_text)
    assert decided(ready) == []
