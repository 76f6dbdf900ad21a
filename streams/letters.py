"""Dead letters read back: where each came from, why it was refused, and what may be sent again."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import Message

from schemas.settings import Settings
from schemas.topology import DEAD_LETTER_TOPICS, Topic
from streams.eventlog import read_records

REPLAY_OF: Final = "dlq.replay-of"
SHOWN_BYTES: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A record of a dead-letter topic. topic: that topic, as it is named on the cluster; source, source_partition,
    source_offset: where the record was read, None where its headers do not say. headers: as received, ours taken off.
    replay_of: the letter that was sent again and came back.
    """

    topic: str
    partition: int
    offset: int
    written: float
    reject_class: str
    reason: str
    source: str | None
    source_partition: int | None
    source_offset: int | None
    key: bytes | None
    value: bytes | None
    size: int  # bytes of the value, all of it
    headers: tuple[tuple[str, bytes | None], ...]
    replay_of: str | None

    @property
    def name(self) -> str:
        """topic/partition/offset: how it is called."""
        return f"{self.topic}/{self.partition}/{self.offset}"

    @property
    def cut(self) -> bool:
        """Whether its dead-letter topic could not take all of it."""
        return " (cut: " in self.reason


def letter_of(message: Message) -> Letter:
    """The letter of a record; headers that are missing or wrong leave their fields empty."""
    headers = [(name, content) for name, content in message.headers() or ()]
    ours = {name: content.decode(errors="replace") for name, content in headers if content is not None}

    def number(name: str) -> int | None:
        text = ours.get(name, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    return Letter(
        topic=message.topic(),
        partition=message.partition(),
        offset=message.offset(),
        written=message.timestamp()[1] / 1000,
        reject_class=ours.get("dlq.class", "unknown"),
        reason=ours.get("dlq.reason", ""),
        source=ours.get("dlq.topic"),
        source_partition=number("dlq.partition"),
        source_offset=number("dlq.offset"),
        key=message.key(),
        value=message.value(),
        size=len(message.value() or b""),
        headers=tuple((name, content) for name, content in headers if not name.startswith("dlq.")),
        replay_of=ours.get(REPLAY_OF),
    )


def read_letters(
    settings: Settings,
    topics: Sequence[Topic] = DEAD_LETTER_TOPICS,
    *,
    follow: bool = False,
    newest: int | None = None,
    places: Mapping[tuple[str, int], int] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Letter | None]:
    """Letters of the topics, oldest first within each partition; as `streams.eventlog.read_records` reads."""
    for message in read_records(settings, topics, follow=follow, newest=newest, places=places, stopping=stopping):
        yield None if message is None else letter_of(message)


def shown(raw: bytes | None, most: int = SHOWN_BYTES) -> dict[str, Any] | None:
    """Bytes as a person may safely look at them: the text with everything invisible escaped, and the same in hex."""
    if raw is None:
        return None
    part = raw[:most]
    return {"text": visible(part.decode("utf-8", "backslashreplace")), "hex": part.hex(" "), "bytes": len(raw)}


def visible(text: str) -> str:
    """Control characters, marks that turn the direction of writing and the like as escapes; all else as it is."""
    return "".join(
        char if char == "\n" or unicodedata.category(char)[0] != "C" else char.encode("unicode_escape").decode()
        for char in text
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """What a replay would do. passed_over: why → how many letters."""

    chosen: list[Letter]
    passed_over: Mapping[str, int]


def plan(letters: Sequence[Letter], replayed: Collection[str], *, most: int, again: bool = False) -> Plan:
    """Which of the letters to send again: none that was sent before, none that lacks a part, and, unless `again`, none
    that has come back already.
    """
    chosen: list[Letter] = []
    passed_over: Counter[str] = Counter()
    for letter in letters:
        if letter.name in replayed:
            passed_over["sent again before"] += 1
        elif letter.source is None or letter.source_partition is None:
            passed_over["does not say where it came from"] += 1
        elif letter.cut:
            passed_over["was too big to be kept whole"] += 1
        elif letter.replay_of is not None and not again:
            passed_over["has come back once already"] += 1
        elif len(chosen) >= most:
            passed_over["beyond the limit"] += 1
        else:
            chosen.append(letter)
    return Plan(chosen, passed_over)
