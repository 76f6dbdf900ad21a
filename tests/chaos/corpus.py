"""Several hundred messages that sensors, and those who wish us ill, may send; each with what must become of it.

`python -m tests.chaos.corpus [FOLDER]` counts them by group and class, and writes them as files.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from schemas.activity import CHANNEL_NAMES

NOW: Final = 1.7e9
VALID: Final = "valid"
DUPLICATE: Final = "duplicate"  # dropped and counted, no dead letter


@dataclass(frozen=True, slots=True)
class Case:
    """One message. expected: a reject class, VALID or DUPLICATE. before: a good one of the same device, sent first."""

    name: str
    group: str
    expected: str
    key: bytes | None
    value: bytes | None
    before: bytes | None = None

    @property
    def good_readings(self) -> int:
        """How many readings of a valid message must pass: all."""
        ts = json.loads(self.value or b"")["ts"] if self.expected == VALID else []
        return len(ts) if isinstance(ts, list) else 1


@dataclass(frozen=True, slots=True)
class Sent:
    """A value with another key than the device, or with a message before it."""

    value: Any
    key: Any = ...
    before: bytes | None = None


class Templates:
    """Good messages of the device that the next case is about; each has its own, so that none changes another's."""

    device = "case-0000"

    def single(self, **changes: Any) -> dict[str, Any]:
        """A reading as a dict, with changes; a field set to ... is left out."""
        fields = {"device": self.device, "ts": NOW, "seq": 7, **dict.fromkeys(CHANNEL_NAMES, 0.25), "act": "wlk"}
        return {name: value for name, value in (fields | changes).items() if value is not ...}

    def batch(self, count: int = 3, **changes: Any) -> dict[str, Any]:
        """A batch as a dict, 50 Hz."""
        fields = {"device": self.device, "ts": [NOW + i / 50 for i in range(count)], "seq": list(range(count))}
        fields |= {"act": "wlk", **{name: [0.25 + i / 1000 for i in range(count)] for name in CHANNEL_NAMES}}
        return {name: value for name, value in (fields | changes).items() if value is not ...}

    def good(self) -> bytes:
        """A reading as it is sent."""
        return json.dumps(self.single()).encode()


def raw(message: dict[str, Any], **texts: str) -> bytes:
    """JSON of the message in which each field's value is the text given, valid JSON or not."""
    text = json.dumps({**message, **{name: f"@{name}@" for name in texts}})
    for name, value in texts.items():
        text = text.replace(f'"@{name}@"', value)
    return text.encode()


# What a group's function yields: a name, what is expected, and the message: bytes, a dict, None, or Sent.
Made = Iterator[tuple[str, str, Any]]


def cases() -> list[Case]:
    """The whole corpus, always the same."""
    from tests.chaos import corpus_texts, corpus_values

    templates, found = Templates(), []
    for make in (*corpus_texts.GROUPS, *corpus_values.GROUPS):
        for name, expected, content in make(templates):
            sent = content if isinstance(content, Sent) else Sent(content)
            key = templates.device.encode() if sent.key is ... else sent.key
            value = json.dumps(sent.value).encode() if isinstance(sent.value, dict) else sent.value
            group = make.__name__
            found.append(Case(f"{group}: {name}", group, expected, key, value, sent.before))
            templates.device = f"case-{len(found):04}"
    return found


def main() -> None:
    """Count the cases, and write them where a folder is given."""
    found = cases()
    print(f"{len(found)} cases")
    for group, count in Counter(case.group for case in found).items():
        print(f"  {group:10} {count}")
    for expected, count in Counter(case.expected for case in found).items():
        print(f"  {expected:16} {count}")
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        folder.mkdir(parents=True, exist_ok=True)
        for number, case in enumerate(found):
            (folder / f"{number:04}-{case.group}-{case.expected}").write_bytes(case.value or b"")


if __name__ == "__main__":
    main()
