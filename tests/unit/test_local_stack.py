"""The one-machine stack without a process: ports, configuration, health counts, logs, a user's own servers."""

from __future__ import annotations

import configparser
import errno
import json
import os
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from deploy.local import health, kafka, orphans, ports, programs, supervisor
from deploy.local import home as homes
from deploy.local.stack import Process, Stack
from schemas.errors import UserError
from schemas.settings import Settings
from schemas.topology import TOPICS


@pytest.fixture
def home(tmp_path: Path) -> Path:
    homes.run(tmp_path).mkdir()
    return tmp_path


def test_ports_stay_the_same_from_one_start_to_the_next(home):
    first = ports.choose(home, ["kafka", "mlflow"])
    assert ports.choose(home, ["mlflow", "kafka"]) == first
    assert len(set(first.values())) == 2


def test_a_port_that_somebody_took_is_chosen_anew(home):
    first = ports.choose(home, ["kafka", "mlflow"])
    with socket.create_server(("127.0.0.1", first["kafka"])):
        second = ports.choose(home, ["kafka", "mlflow"])
        assert second["kafka"] != first["kafka"]
        assert second["mlflow"] == first["mlflow"]


def test_a_port_that_we_listen_on_ourselves_is_kept(home):
    first = ports.choose(home, ["kafka"])
    with socket.create_server(("127.0.0.1", first["kafka"])):
        assert ports.choose(home, ["kafka"], running={"kafka"}) == first


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kafka": "no"}', '{"kafka": 99999}'])
def test_a_damaged_file_of_ports_is_as_good_as_none(home, content):
    (home / "ports.json").write_text(content)
    assert ports.is_free(ports.choose(home, ["kafka"])["kafka"])


def test_the_broker_takes_every_topics_largest_message():
    """A topic's max.message.bytes above what replicas fetch and brokers accept would fail only in production."""
    settings = dict(
        line.split("=", 1) for line in kafka.properties(port=1, controller_port=2, data="data").splitlines()
    )
    largest = max(topic.max_message_bytes or 0 for topic in TOPICS)
    assert int(settings["message.max.bytes"]) >= largest
    assert int(settings["replica.fetch.max.bytes"]) >= largest
    assert settings["auto.create.topics.enable"] == "false"
    assert settings["listeners"].startswith("PLAINTEXT://127.0.0.1:1,")


def test_every_program_is_restarted_for_ever_and_stopped_as_a_group():
    parser = configparser.RawConfigParser()
    parser.read_string(supervisor.config(["kafka", "agent"], socket_path=Path("x.sock")))
    for name in ("kafka", "agent"):
        program = parser[f"program:{name}"]
        assert program["autorestart"] == program["stopasgroup"] == program["killasgroup"] == "true"
        assert int(program["startretries"]) >= 1_000_000
        assert program["stdout_logfile"] == f"logs/{name}.log"
    assert parser.getint("program:kafka", "priority") < parser.getint("program:agent", "priority")  # stopped last


def test_the_sockets_path_is_short_and_stays_where_it_was_first(home, monkeypatch):
    """A unix socket's path may have 108 characters; TMPDIR may differ between `up` and `status`."""
    path = supervisor.socket_of(home)
    assert len(str(path)) < 108
    monkeypatch.setattr("tempfile.tempdir", "elsewhere")
    assert supervisor.socket_of(home) == path
    assert supervisor.socket_of(home / "other") != path


def test_programs_come_back_as_they_were_written(home):
    program = programs.Program(name="a", command=["x", "%(y)s"], environment={"Q": "\"' #;\n"}, live="http://h/live")
    programs.write(home, [program])
    assert programs.read(home) == {"a": program}


def test_a_process_that_never_answered_is_starting_not_hanging():
    watch = health.Watch(limit=2)
    assert not any(watch.hangs("agent", 1, alive=False) for _ in range(9))


def test_a_process_hangs_when_it_failed_often_enough_in_a_row():
    watch = health.Watch(limit=2)
    answers = [True, False, True, False, False]
    assert [watch.hangs("agent", 1, alive=alive) for alive in answers] == [False, False, False, False, True]


def test_a_new_process_of_the_same_name_begins_anew():
    watch = health.Watch(limit=1)
    watch.hangs("agent", 1, alive=True)
    assert not watch.hangs("agent", 2, alive=False)


def test_the_last_trouble_of_a_log_is_its_last_error_not_its_last_line(tmp_path):
    log = tmp_path / "kafka.log"
    log.write_text("INFO started\njava.io.IOException: disk\n\tat java.lang.SomeError(x)\nINFO shutting down\n\n")
    assert homes.last_trouble(log) == "java.io.IOException: disk"
    log.write_text("one\ntwo\n")
    assert homes.last_trouble(log) == "two"
    assert homes.last_trouble(tmp_path / "none.log") == "(no log yet)"


def test_a_home_that_cannot_be_written_is_one_line_that_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*DRIFTLOOP_HOME"):
        homes.prepare(tmp_path / "file" / "home")


@pytest.mark.parametrize("how", ["free", "write"])
def test_a_full_disk_is_one_line_that_says_so(tmp_path, monkeypatch, how):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if how == "write":
        monkeypatch.setattr(Path, "write_bytes", full)
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(UserError, match=r"disk.*free") as caught:
        homes.prepare(tmp_path)
    assert "\n" not in str(caught.value)


def test_jars_that_cannot_be_fetched_are_one_line_that_names_the_way_out(monkeypatch):
    def offline(_):
        raise RuntimeError("could not\nresolve")

    monkeypatch.setattr("jgo.build", offline)
    with pytest.raises(UserError, match=r"cannot be fetched.*DRIFTLOOP_KAFKA_BOOTSTRAP.*could not resolve") as caught:
        kafka._class_path(lambda _: None)
    assert "\n" not in str(caught.value)


def test_an_address_of_our_own_is_told_from_the_users(home):
    """`stack.env` of a stack that died leaves its addresses in the settings: they must not pass for the user's."""
    (home / "ports.json").write_text(json.dumps({"kafka": 20001, "mlflow": 20002, "router": 20003}))
    stale = Settings(
        _env_file=None,
        kafka_bootstrap="127.0.0.1:20001",
        mlflow_tracking_uri="http://127.0.0.1:20002",
        router_port=20003,
    )
    assert Stack(home, stale)._users() == {}
    own = Settings(_env_file=None, kafka_bootstrap="k:9092", mlflow_tracking_uri="https://m/base/")
    assert Stack(home, own)._users() == {"kafka": "kafka://k:9092", "mlflow": "https://m/base/health"}
    files = Settings(_env_file=None, mlflow_tracking_uri="sqlite:///x.db")
    assert Stack(home, files)._users() == {"mlflow": None}


def test_a_users_router_port_that_is_taken_is_told_before_anything_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        stack = Stack(tmp_path, Settings(_env_file=None, router_port=port))
        with pytest.raises(UserError, match=f"DRIFTLOOP_ROUTER_PORT={port}: another program listens"):
            stack.up([])
    assert stack.status() == []


def test_a_worker_cannot_take_the_name_of_a_server(tmp_path):
    with pytest.raises(ValueError, match="kafka"):
        Stack(tmp_path, Settings(_env_file=None)).up([Process(name="kafka", command=["true"])], services=())


def test_the_caller_and_its_parents_are_never_taken_for_a_part_of_the_stack(home, monkeypatch):
    """A worker that runs `driftloop down` hands its mark to that command."""
    asked = []
    monkeypatch.setattr("psutil.Process.environ", lambda self: asked.append(self.pid) or {programs.MARK: str(home)})
    found = {each.process.pid for each in orphans.marked(home)}
    assert asked
    assert not found & {os.getpid(), os.getppid()}
