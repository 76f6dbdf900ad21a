"""What the doctor says when something is missing: never a traceback, always how to mend it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from schemas.settings import Settings
from workers import doctor
from workers.doctor import Finding, examine


@pytest.fixture
def answering() -> Iterator[tuple[int, dict[str, tuple[int, bytes]]]]:
    """A port that answers each path with the status and body in the dictionary."""
    answers: dict[str, tuple[int, bytes]] = {}

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, body = answers[self.path]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_port, answers
    server.shutdown()
    server.server_close()


def found(settings: Settings, what: str) -> Finding:
    check = {"broker": doctor._broker, "MLflow": doctor._mlflow, "endpoint": doctor._endpoint, "disk": doctor._disk}
    return check[what](settings)


def made(**fields: object) -> Settings:
    return Settings(_env_file=None, **fields)


MLFLOW = "/api/2.0/mlflow/experiments/search"


@pytest.mark.parametrize(
    ("status", "body", "good", "said"),
    [
        (200, b'{"experiments": []}', True, "answers 200"),
        (403, b"Invalid Host header", False, "--allowed-hosts"),
        (500, b"", False, "answers 500"),
        (200, b"<html>somebody else's server</html>", False, "no MLflow server"),
    ],
)
def test_an_mlflow_is_judged_by_a_question_that_only_a_usable_one_answers(answering, status, body, good, said):
    """Its /health says yes even where every call of ours will be refused."""
    port, answers = answering
    answers[MLFLOW] = status, body
    finding = found(made(mlflow_tracking_uri=f"http://127.0.0.1:{port}/"), "MLflow")
    assert finding.good is good
    assert said in finding.detail


@pytest.mark.parametrize(
    ("status", "body", "good", "said"),
    [
        (200, b'{"version": "7"}', True, "serves version 7"),
        (503, b"{}", True, "no model deployed yet"),
        (502, b"{}", False, "deploy worker's log"),
        (200, b"<html>", False, "no router of ours"),
        (200, b"[1]", False, "no router of ours"),
    ],
)
def test_the_endpoint_is_judged_by_which_version_it_names(answering, status, body, good, said):
    """Another program may have the port."""
    port, answers = answering
    answers["/version"] = status, body
    finding = found(made(router_port=port), "endpoint")
    assert finding.good is good
    assert said in finding.detail


def test_a_proxy_in_the_environment_is_not_asked_about_this_machine(answering, monkeypatch):
    """Behind a company's proxy the doctor would call every local server ill."""
    port, answers = answering
    answers[MLFLOW], answers["/version"] = (200, b'{"experiments": []}'), (200, b'{"version": "7"}')
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    settings = made(mlflow_tracking_uri=f"http://127.0.0.1:{port}", router_port=port)
    assert [found(settings, what).good for what in ("MLflow", "endpoint")] == [True, True]


@pytest.mark.parametrize(
    ("what", "fields", "said"),
    [
        ("broker", {}, "DRIFTLOOP_KAFKA_BOOTSTRAP"),
        ("MLflow", {}, "MLFLOW_TRACKING_URI"),
        ("MLflow", {"mlflow_tracking_uri": "http://127.0.0.1:1"}, "does not answer"),
        ("MLflow", {"mlflow_tracking_uri": "http://[1:2"}, "MLFLOW_TRACKING_URI"),
        ("endpoint", {}, "DRIFTLOOP_ROUTER_PORT"),
        ("endpoint", {"router_port": 1}, "is `run router` running?"),
    ],
)
def test_what_is_missing_is_named_with_how_to_have_it(what, fields, said, monkeypatch):
    """A finding without a remedy is a riddle."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # which MLflow's own client sets for the whole process
    finding = found(made(**fields), what)
    assert not finding.good
    assert said in finding.detail


def test_a_home_that_does_not_exist_yet_is_looked_at_where_it_will_be(tmp_path, monkeypatch):
    """Before the first start there is no folder, and that is no fault."""
    monkeypatch.setattr(doctor, "_FREE_BYTES", 0)
    assert str(tmp_path) in found(made(home=tmp_path / "a" / "b"), "disk").detail
    monkeypatch.setattr(doctor, "_FREE_BYTES", 1e18)
    assert not found(made(home=tmp_path), "disk").good


def test_without_a_broker_nothing_is_said_of_what_only_it_could_tell(tmp_path):
    """A page of follow-up failures hides the one that counts."""
    names = [finding.what for finding in examine(made(home=tmp_path))]
    assert names == ["broker", "MLflow", "trust", "endpoint", "disk"]
