"""What a supervisor is told about a process."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request

import pytest

from schemas.errors import UserError
from workers.health import LOOP_SECONDS, Health


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture
def health():
    served = Health("agent")
    served.port = free_port()
    served.serve(served.port)
    return served


def stuck(health, monkeypatch):
    monkeypatch.setattr("workers.health.time.monotonic", lambda beaten=health._beaten: beaten + LOOP_SECONDS + 1)


def test_a_process_that_only_starts_is_live_but_not_ready(health):
    """A supervisor must not kill what is still waiting for Kafka."""
    health.doing = "waiting for Kafka and its topics"
    assert ask(health.port, "/live") == (
        200,
        {"process": "agent", "doing": "waiting for Kafka and its topics", "ok": True},
    )
    assert ask(health.port, "/ready")[0] == 503


def test_a_process_is_ready_when_it_says_so(health):
    """Readiness is each process's own to know."""
    health.ready = lambda: True
    assert ask(health.port, "/ready")[0] == 200


def test_a_loop_that_does_not_turn_is_neither_live_nor_ready(health, monkeypatch):
    """A process that hangs looks alive to everything but this."""
    health.ready = lambda: True
    stuck(health, monkeypatch)
    assert ask(health.port, "/live")[0] == 503
    assert ask(health.port, "/ready")[0] == 503


def test_a_beat_makes_it_live_again(health):
    """A long rebalance is no hang once it is over."""
    health._beaten -= LOOP_SECONDS + 1
    assert not health.live
    health.beat()
    assert health.live


def test_a_readiness_that_cannot_be_told_is_not_ready(health):
    """While clients come and go the question itself may fail; the answer is then no, not a broken connection."""

    def unknown():
        raise RuntimeError("no consumer")

    health.ready = unknown
    assert ask(health.port, "/ready")[0] == 503


def test_any_other_path_is_unknown(health):
    """Nothing else is served here."""
    assert ask(health.port, "/")[0] == 404
    assert ask(health.port, "/metrics/")[0] == 404


def test_a_taken_port_is_one_line_that_says_what_to_do(health):
    """Two processes with one setting is the usual mistake."""
    with pytest.raises(UserError, match=f"port {health.port} .*DRIFTLOOP_HEALTH_PORT"):
        Health("retrain").serve(health.port)


def test_port_zero_serves_nothing():
    """By default nobody asks, so nothing listens."""
    Health("agent").serve(0)
