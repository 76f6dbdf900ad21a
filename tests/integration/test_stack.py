"""The one-machine stack with real processes: what a person relies on when something is killed, full or taken."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from deploy.local import health, orphans, supervisor
from deploy.local import home as homes
from deploy.local.programs import MARK, SERVING_MARK
from deploy.local.stack import Process, ProcessStatus, Stack
from schemas.errors import UserError
from schemas.settings import Settings, load_settings
from schemas.topology import DEAD_LETTER_BYTES

WORKER = """
import http.server, os, pathlib
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if pathlib.Path(os.environ["SICK"] + self.path).exists() else 200)
        self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["DRIFTLOOP_HEALTH_PORT"])), Health).serve_forever()
"""


class Dummy:
    """A stack of Kafka and one worker, which answers 503 on the paths named in `sick`."""

    def __init__(self, home: Path) -> None:
        self.sick = home.with_name("sick")
        self.sick.mkdir()
        self.worker = Process(
            name="worker", command=[sys.executable, "-c", WORKER], environment={"SICK": str(self.sick)}
        )
        self.stack = Stack(home, Settings(_env_file=None))
        self.said: list[str] = []

    def up(self) -> dict[str, str]:
        self.said.clear()
        addresses = self.stack.up([self.worker], self.said.append, services=["kafka"])
        eventually(lambda: self["worker"].healthy)
        return addresses

    def __getitem__(self, name: str) -> ProcessStatus:
        return next(each for each in self.stack.status() if each.name == name)


def eventually(check: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def dummy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dummy]:
    home = tmp_path_factory.mktemp("a home; 100% #1") / "home"
    # what a kill while Kafka formatted its folder may have left
    (home / "kafka" / "data").mkdir(parents=True)
    (home / "kafka" / "data" / "bootstrap.checkpoint").write_text("half")
    (home / "kafka" / "data.new" / "half").mkdir(parents=True)
    dummy = Dummy(home)
    try:
        dummy.up()
        yield dummy
    finally:
        dummy.stack.down()


def test_every_command_finds_the_addresses_of_a_running_stack(dummy, monkeypatch):
    for name in ("DRIFTLOOP_KAFKA_BOOTSTRAP", "DRIFTLOOP_ROUTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    addresses = dummy.up()
    found = load_settings(home=dummy.stack.home)
    assert found.kafka_bootstrap == addresses["DRIFTLOOP_KAFKA_BOOTSTRAP"] == dummy["kafka"].address
    assert found.router_port == int(addresses["DRIFTLOOP_ROUTER_PORT"]) > 0


def test_up_leaves_a_healthy_stack_alone(dummy):
    before = [dummy["kafka"].pid, dummy["worker"].pid]
    dummy.up()
    # Settings read while it runs name its Kafka: that is not a Kafka of the user's.
    again = Stack(dummy.stack.home, load_settings(home=dummy.stack.home))
    again.up([dummy.worker], services=["kafka"])
    assert [dummy["kafka"].pid, dummy["worker"].pid] == before
    assert [each.state for each in again.status()] == ["running", "running"]


def test_status_tells_a_process_that_is_not_ready(dummy):
    assert (dummy["kafka"].state, dummy["kafka"].healthy) == ("running", True)
    (dummy.sick / "ready").touch()
    assert (dummy["worker"].healthy, dummy["worker"].detail) == (False, "503")
    (dummy.sick / "ready").unlink()
    assert dummy["worker"].healthy


def test_a_killed_worker_comes_back(dummy):
    killed = dummy["worker"].pid
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: dummy["worker"].healthy and dummy["worker"].pid != killed)


def test_a_worker_that_hangs_is_restarted(dummy):
    running, watch = supervisor.connect(dummy.stack.home), health.Watch(limit=2)
    eventually(lambda: running.info()["worker"]["statename"] == "RUNNING")
    hung = dummy["worker"].pid
    health.look(dummy.stack.home, running, watch)
    (dummy.sick / "live").touch()
    health.look(dummy.stack.home, running, watch)
    assert dummy["worker"].pid == hung
    health.look(dummy.stack.home, running, watch)
    (dummy.sick / "live").unlink()
    eventually(lambda: dummy["worker"].healthy and dummy["worker"].pid != hung)


def test_the_health_watch_of_a_running_stack_asks_its_processes(dummy):
    log = homes.log_of(dummy.stack.home, supervisor.HEALTH)
    eventually(lambda: supervisor.connect(dummy.stack.home).info()["worker"]["statename"] == "RUNNING")
    time.sleep(12)  # a tick or two: it must have been seen alive
    (dummy.sick / "live").touch()
    try:
        eventually(lambda: "health.failed" in log.read_text(), seconds=60)
    finally:
        (dummy.sick / "live").unlink()


def test_a_second_up_waits_and_says_so(dummy):
    said, entered = [], threading.Event()
    with homes.lock(dummy.stack.home, print):
        second = threading.Thread(
            target=dummy.stack.up,
            args=([dummy.worker], lambda line: (said.append(line), entered.set())),
            kwargs={"services": ["kafka"]},
        )
        second.start()
        assert entered.wait(10)
        assert "at work" in said[0]
    second.join(20)
    assert not second.is_alive()


def test_a_stack_whose_supervisor_was_killed_is_taken_over_with_its_data(dummy):
    """`kill -9` of supervisord leaves Kafka with its lock and its port: `up` must replace it and lose nothing."""
    admin = AdminClient({"bootstrap.servers": dummy["kafka"].address, "log_level": 0})
    admin.create_topics([NewTopic("made-before", 1, 1)])["made-before"].result(10)
    detached = {**os.environ, MARK: str(dummy.stack.home), SERVING_MARK: "activity-v1"}
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=detached)
    address, pids = dummy["kafka"].address, [dummy["kafka"].pid, dummy["worker"].pid]

    os.kill(supervisor.connect(dummy.stack.home).pid, signal.SIGKILL)
    eventually(lambda: dummy["kafka"].state == "orphan")
    assert [dummy["kafka"].pid, dummy["worker"].pid] == pids
    assert (dummy["worker"].state, dummy["worker"].healthy) == ("orphan", True)
    assert dummy["activity-v1"].state == "serving"

    dummy.up()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert [dummy["kafka"].state, dummy["worker"].state] == ["running", "running"]
    assert dummy["kafka"].address == address
    eventually(lambda: "made-before" in AdminClient({"bootstrap.servers": address}).list_topics(timeout=5).topics)
    assert server.poll() is None, "a model's server outlives the workers"

    dummy.stack.down()
    eventually(lambda: server.poll() is not None)
    assert orphans.marked(dummy.stack.home) == []
    assert {each.state for each in dummy.stack.status()} == {"stopped"}
    assert not (dummy.stack.home / "stack.env").exists()
    dummy.stack.down()  # once more is no error


def test_a_broker_that_cannot_start_is_one_line_with_its_log_and_its_words(tmp_path):
    stack = Stack(tmp_path, Settings(_env_file=None))
    (tmp_path / "kafka" / "data").mkdir(parents=True)
    (tmp_path / "kafka" / "data" / "meta.properties").write_text("version=77\n")
    detached = {**os.environ, MARK: str(stack.home), SERVING_MARK: "activity-v1"}
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=detached)
    with pytest.raises(UserError, match=r"^kafka does not start; .*kafka\.log: .*(Exception|ERROR|rror)") as caught:
        stack.up([], services=["kafka"])
    assert "\n" not in str(caught.value)
    assert [each.process.pid for each in orphans.marked(stack.home)] == [server.pid], "what it began, it ends"
    server.kill()
    server.wait()
    assert supervisor.connect(stack.home) is None


def test_a_users_server_that_does_not_answer_is_named_by_its_setting(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.local.stack._USERS_SECONDS", 0.1)
    stack = Stack(tmp_path, Settings(_env_file=None, kafka_bootstrap="127.0.0.1:1"))
    with pytest.raises(UserError, match=r"^DRIFTLOOP_KAFKA_BOOTSTRAP=127\.0\.0\.1:1 does not answer"):
        stack.up([], services=["kafka"])
    assert orphans.marked(stack.home) == []


def test_a_home_on_a_full_disk_is_one_line(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("not on this machine: the right to mount a small file system")
    try:
        (tmp_path / "full").write_bytes(b"x" * 48 * 1024)
        with pytest.raises(UserError, match=r"disk") as caught:
            Stack(tmp_path / "home", Settings(_env_file=None)).up([])
        assert "\n" not in str(caught.value)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_the_broker_takes_a_dead_letter_of_the_largest_size(settings):
    """A record that is far too big for the gate still has to fit into the dead-letter topic."""
    topic = f"{settings.namespace}big"
    admin = AdminClient({"bootstrap.servers": settings.kafka_bootstrap})
    config = {"max.message.bytes": str(DEAD_LETTER_BYTES)}
    admin.create_topics([NewTopic(topic, 1, 1, config=config)])[topic].result(10)
    producer = Producer(
        {"bootstrap.servers": settings.kafka_bootstrap, "message.max.bytes": DEAD_LETTER_BYTES, "acks": "all"}
    )
    errors = []
    producer.produce(topic, b"x" * (DEAD_LETTER_BYTES - 1024), on_delivery=lambda error, _: errors.append(error))
    producer.flush(20)
    assert errors == [None]


def test_mlflow_keeps_what_it_is_given(mlflow_uri):
    made = httpx.post(f"{mlflow_uri}/api/2.0/mlflow/experiments/create", json={"name": "kept"}, timeout=20)
    assert made.status_code == 200
    found = httpx.get(
        f"{mlflow_uri}/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": "kept"}, timeout=20
    )
    assert found.json()["experiment"]["artifact_location"].startswith("mlflow-artifacts:/")
    path = f"{mlflow_uri}/api/2.0/mlflow-artifacts/artifacts/a/b.txt"
    assert httpx.put(path, content=b"kept", timeout=20).status_code == 200
    assert httpx.get(path, timeout=20).content == b"kept"
