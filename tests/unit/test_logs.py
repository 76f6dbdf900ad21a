"""Log lines: one event a line, foreign libraries seldom."""

from __future__ import annotations

import io
import logging
import sys

import pytest
import structlog

from schemas.settings import Settings
from workers import logs


@pytest.fixture
def err(monkeypatch):
    """Lines written since the last call, after logging has been configured; everything as it was afterwards."""
    stream = io.StringIO()
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(sys, "stderr", stream)
    level = root.level
    logs.configure_logging(Settings(_env_file=None))

    def lines():
        text = stream.getvalue()
        stream.seek(0)
        stream.truncate()
        return text.splitlines()

    yield lines
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.setLevel(level)


def test_an_event_is_one_line_with_its_fields(err):
    """Whoever looks for a device greps."""
    structlog.contextvars.bind_contextvars(process="agent")
    structlog.get_logger().info("drift.detected", device="phone-07", effect=2.1)
    (line,) = err()
    assert "drift.detected" in line
    assert "device=phone-07" in line
    assert "effect=2.1" in line
    assert "process=agent" in line
    assert "\x1b" not in line


def test_what_a_stranger_sent_cannot_forge_a_line(err):
    """Reasons quote keys and values as they came."""
    structlog.get_logger().warning("reading.rejected", reason="bad\n2026-01-01 [error] model deleted\x1b[31m")
    (line,) = err()
    assert "\x1b" not in line


def test_a_foreign_library_says_the_same_only_once_in_a_while(err, monkeypatch):
    """A broker restart makes Faust write 1,400 lines."""
    now = [1000.0]
    monkeypatch.setattr("workers.logs.time.monotonic", lambda: now[0])
    foreign = logging.getLogger("aiokafka.conn")
    for host in range(50):
        foreign.warning("cannot connect to %s", host)
    assert len(err()) == 1
    foreign.warning("something else")
    assert len(err()) == 1
    now[0] += logs.REPEAT_S
    foreign.warning("cannot connect to %s", 51)
    assert len(err()) == 1


def test_the_first_word_is_never_swallowed_on_a_machine_that_has_just_booted(err, monkeypatch):
    """The monotonic clock may begin at 0."""
    monkeypatch.setattr("workers.logs.time.monotonic", lambda: 0.5)
    logging.getLogger("faust").error("crashed")
    assert len(err()) == 1


def test_a_foreign_libraries_chatter_is_not_written(err):
    """Warnings and worse only."""
    logging.getLogger("faust").info("hello")
    assert err() == []


def test_texts_that_are_never_the_same_do_not_fill_memory():
    """An agent runs for months."""
    seldom = logs._Seldom()
    for number in range(5 * logs.MOST_REMEMBERED):
        assert seldom.filter(logging.LogRecord("x", 30, "", 0, f"request {number} failed", None, None))
    assert len(seldom.said) <= logs.MOST_REMEMBERED
