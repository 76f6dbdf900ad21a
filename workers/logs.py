"""Log lines are events with fields, one a line, on stderr; a supervisor puts them into files."""

from __future__ import annotations

import logging
import math
import sys
import time

import structlog

from schemas.settings import Settings

REPEAT_S = 30.0
MOST_REMEMBERED = 1_000


class _Seldom(logging.Filter):
    """Lets a foreign library say the same thing once in REPEAT_S: a broker restart makes Faust write 1,400 lines."""

    def __init__(self) -> None:
        super().__init__()
        self.said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key, now = (record.name, str(record.msg)[:80]), time.monotonic()
        if now - self.said.get(key, -math.inf) < REPEAT_S:
            return False
        if len(self.said) >= MOST_REMEMBERED:  # texts that are never the same twice
            self.said.clear()
        self.said[key] = now
        return True


def configure_logging(settings: Settings) -> None:
    """Our own events at the settings' level, other libraries' warnings, both in one form."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_Seldom())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=structlog.dev.ConsoleRenderer(
                colors=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
            ),
            foreign_pre_chain=shared,
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
