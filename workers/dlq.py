"""`driftloop dlq`: dead letters as a person reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from schemas.errors import UserError
from schemas.settings import Settings
from schemas.topology import DEAD_LETTER_TOPICS, Topic
from streams.letters import SHOWN_BYTES, Letter, read_letters, shown

_HEX_BYTES: Final = 256


def letters(settings: Settings, topic: str | None, reject_class: str | None, *, whole: bool = False) -> list[Letter]:
    """All that match, oldest first; of their values only the beginning unless `whole`. Raises UserError or Retry."""
    chosen = _topics(topic)
    found = (
        each if whole else replace(each, value=each.value and each.value[:SHOWN_BYTES])
        for each in read_letters(settings, chosen)
        if each is not None and reject_class in (None, each.reject_class)
    )
    return sorted(found, key=lambda each: each.written)


def _topics(topic: str | None) -> list[Topic]:
    known = {each.name.removesuffix(".dlq"): each for each in DEAD_LETTER_TOPICS}
    if topic is None:
        return list(known.values())
    if topic.removesuffix(".dlq") not in known:
        raise UserError(f"--topic {topic}: there are {', '.join(known)}")
    return [known[topic.removesuffix(".dlq")]]


def one(settings: Settings, name: str) -> Letter:
    """The letter of a name. Raises UserError if there is none."""
    topic, partition, offset = _parsed(name)
    known = {settings.topic(each): each for each in DEAD_LETTER_TOPICS}
    if topic not in known:
        raise UserError(f"{name}: no dead-letter topic of that name; there are {', '.join(known)}")
    places = {(topic, partition): offset}
    for each in read_letters(settings, [known[topic]], newest=0, places=places):
        if each is not None and (each.partition, each.offset) == (partition, offset):
            return each
    raise UserError(f"{name}: no such letter; it may be past the topic's retention")


def _parsed(name: str) -> tuple[str, int, int]:
    parts = name.rsplit("/", 2)
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts[1:]):
        raise UserError(f"{name}: name a letter as TOPIC/PARTITION/OFFSET, as `driftloop dlq list` does")
    return parts[0], int(parts[1]), int(parts[2])


def table(found: Sequence[Letter], limit: int) -> Group:
    """Counts by class, and the last letters."""
    counts = Table("class", "records", box=None, header_style="bold")
    for reject_class, count in Counter(each.reject_class for each in found).most_common():
        counts.add_row(escape(reject_class), f"{count:,}")
    last = Table("when", "letter", "class", "reason", "from", "value", box=None, header_style="bold")
    for each in found[-limit:]:
        value: Any = shown(each.value, 60)
        when = datetime.fromtimestamp(each.written).astimezone().strftime("%m-%d %H:%M:%S")
        source = f"{each.source}/{each.source_partition}/{each.source_offset}"
        beginning = "" if value is None else value["text"].replace("\n", " ")
        last.add_row(when, *map(escape, (each.name, each.reject_class, each.reason[:100], source, beginning)))
    return Group(counts, Text(), last)


def tell_letter(letter: Letter) -> Group:
    """All of one letter."""
    facts = Table(box=None, show_header=False)
    value: Any = shown(letter.value)
    key: Any = shown(letter.key, 256)
    for name, text in (
        ("letter", letter.name),
        ("written", datetime.fromtimestamp(letter.written).astimezone().isoformat(timespec="seconds")),
        ("class", letter.reject_class),
        ("reason", letter.reason),
        ("from", f"{letter.source}/{letter.source_partition}/{letter.source_offset}"),
        ("sent again as", letter.replay_of or ""),
        ("key", key["text"] if key else "none"),
        ("bytes", f"{letter.size:,}"),
    ):
        if text:
            facts.add_row(f"[bold]{name}[/]", escape(text))
    parts: list[Any] = [facts, Text()]
    if value:
        parts += [Text(value["text"]), Text(), Text(_dump((letter.value or b"")[:_HEX_BYTES]), style="dim")]
    return Group(*parts)


def _dump(raw: bytes) -> str:
    """Offset, 16 bytes in hex and as ASCII, a line each."""
    lines = []
    for start in range(0, len(raw), 16):
        part = raw[start : start + 16]
        ascii_part = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{start:06x}  {part.hex(' '):<47}  {ascii_part}")
    return "\n".join(lines)
