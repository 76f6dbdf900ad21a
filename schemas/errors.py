"""The three names a failure can have; every `except` at the rim maps to one of them."""

from __future__ import annotations


class Retry(Exception):
    """The world is not ready (broker, MLflow, registry): back off, keep the offset, say so."""


class Reject(Exception):
    """This message can never work: dead-letter the raw bytes with the reason, go on.

    reject_class: of a message, one of `schemas.activity.REJECT_CLASSES`, `schema` or `schema-unsupported`; of a version
    that is not deployed, what its decision gives as reason.
    """

    def __init__(self, reject_class: str, reason: str) -> None:
        super().__init__(f"{reject_class}: {reason}")
        self.reject_class = reject_class
        self.reason = reason[:1000]


class Stop(Exception):
    """Our own state cannot be trusted: end the process without committing; a supervisor restarts it."""


class UserError(Exception):
    """What a person did or set cannot work; the message is one line that says what to do. Exit code 2."""


def first_line(error: BaseException) -> str:
    """Of what an error says; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
