"""The corpus's messages that are wrong as text: not UTF-8, not JSON, keyed or named wrongly."""

from __future__ import annotations

import codecs
import gzip
import json
import lzma
import zlib
from typing import Final

from tests.chaos.corpus import VALID, Made, Sent, Templates, raw

BAD_NUMBERS: Final = (
    "01",
    "+1",
    ".5",
    "5.",
    "0x10",
    "1_000",
    "1e",
    "1e+",
    "--1",
    "- 1",
    "1,5",
    "nan",
    "inf",
    "0b1",
    "1f",
)


def _share(whole: bytes, percent: int) -> bytes:
    return whole[: len(whole) * percent // 100]


def encoding(c: Templates) -> Made:
    def coded(name: str) -> bytes:
        return c.good().decode().encode(name)

    for name in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"):
        yield name, "encoding", coded(name)
    for name, squeeze in (("gzip", gzip.compress), ("zlib", zlib.compress), ("xz", lzma.compress)):
        yield name, "encoding", squeeze(c.good())
    for name in ("UTF-8", "UTF-16", "UTF-32"):
        mark = getattr(codecs, f"BOM_{name.replace('-', '')}".replace("UTF8", "UTF8"))
        yield f"a {name} mark alone", "encoding", mark
    latin = ("\xe4", "\xff", "\xa0", "\xdf")
    for letter in latin:
        yield (
            f"latin-1 {letter!r} in a field",
            "encoding",
            c.good().replace(b'"wlk"', f'"{letter}"'.encode("latin-1")),
        )
    bad = {
        "a lone continuation byte": b"\x80",
        "overlong /": b"\xc0\xaf",
        "overlong NUL": b"\xc0\x80",
        "a surrogate": b"\xed\xa0\x80",
        "beyond Unicode": b"\xf4\x90\x80\x80",
        "five bytes": b"\xf8\x88\x80\x80\x80",
        "cut short": b"\xe2\x82",
        "0xFE": b"\xfe",
        "0xFF": b"\xff",
    }
    for name, wrong in bad.items():
        yield name, "encoding", wrong
        yield (
            f"{name} in the device",
            "encoding",
            c.good().replace(c.device.encode(), c.device.encode() + wrong),
        )
        yield f"{name} in act", "encoding", c.good().replace(b"wlk", wrong)
    # Zeros where UTF-16 and UTF-32 have them.
    yield "NUL four times", "encoding", b"\0\0\0\0"
    yield "NUL before it", "encoding", b"\0" + c.good()
    for name, magic in (
        ("a picture", b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
        ("all bytes", bytes(range(128, 256))),
        ("Confluent's Avro", b"\x00\x00\x00\x00\x07" + bytes(range(200, 256))),
    ):
        yield name, "encoding", magic
    for name, text in (("low", "\\udfff"), ("high", "\\ud800"), ("swapped", "\\udc00\\ud800")):
        for where in ("act", "ts", "attitude.roll"):
            yield f"half a surrogate pair, {name}, in {where}", "encoding", raw(c.single(), **{where: f'"{text}"'})


def syntax(c: Templates) -> Made:
    for name, value in {
        "null": None,
        "empty": b"",
        "blank": b" ",
        "lines": b"\r\n\t\n",
        "csv": b"phone-07,1700000000,0.1,0.2",
        "xml": b"<reading device='phone-07'/>",
        "yaml": b"device: phone-07\nts: 1\n",
        "form": b"device=phone-07&ts=1",
        "msgpack": b"\x01\x02\x03",
        "NUL": b"\0",
        "words": b"not json",
        "html": b"<html><body>502 Bad Gateway</body></html>",
        "single quotes alone": b"{'device': 'a'}",
        "a comment": b"// nothing\n{}",
        "open object": b"{",
        "open list": b"[",
        "open string": b'"',
        "closing only": b"}",
        "colon missing": b'{"device" "a"}',
        "key no string": b"{1: 2}",
        "key bare": b"{device: 1}",
        "Python's None": b"None",
        "Python's True": b"True",
        "undefined": b"undefined",
        "nested lists, open": b"[" * 100_000,
        "nested lists": b"[" * 100_000 + b"]" * 100_000,
        "nested objects": b'{"a":' * 40_000 + b"1" + b"}" * 40_000,
        "nested 1,100 deep, open": b"[" * 1_100,
    }.items():
        yield name, "syntax", value
    for share in range(10, 100, 10):
        yield (
            f"cut at {share} %",
            "syntax",
            _share(c.good(), share),
        )
        yield (
            f"batch cut at {share} %",
            "syntax",
            _share(json.dumps(c.batch()).encode(), share),
        )
    tails = ("}", "]", ",", "x", "{}", "[]", "\0", "null", "\u00a0", "//", ";")
    for tail in tails:
        yield f"{tail!r} after it", "syntax", c.good() + tail.encode()
    for head in (",", "x", ")]}',\n", "data: ", "\u2028", "["):
        yield f"{head!r} before it", "syntax", head.encode() + c.good()
    yield "two objects", "syntax", c.good() * 2
    yield "two lines", "syntax", c.good() + b"\n" + c.good()
    yield "trailing comma", "syntax", c.good()[:-1] + b",}"
    yield "comma twice", "syntax", c.good().replace(b", ", b",, ", 1)
    yield "comma missing", "syntax", c.good().replace(b", ", b" ", 1)
    yield "single quotes", "syntax", c.good().replace(b'"', b"'")
    yield "a raw line break in a string", "syntax", raw(c.single(), subject='"a\nb"')
    yield "a raw tab in a string", "syntax", raw(c.single(), subject='"a\tb"')
    for escape in ("\\x41", "\\u12", "\\u12G4", "\\", "\\a", "\\'"):
        yield f"escape {escape}", "syntax", raw(c.single(), subject=f'"{escape}"')
    for number in BAD_NUMBERS:
        for field in ("ts", "attitude.roll"):
            yield (
                f"{field} {number}",
                "syntax",
                raw(c.single(), **{field: number}),
            )
        yield (
            f"{number} in a batch",
            "schema" if number == "1,5" else "syntax",  # one value more
            raw(c.batch(), **{"attitude.roll": f"[0.1, {number}, 0.1]"}),
        )
    yield (
        "deep in a field we do not know",
        "syntax",
        raw(c.single(), extra="[" * 50_000 + "]" * 50_000),
    )


def keys(c: Templates) -> Made:
    for name, key in {
        "null": None,
        "empty": b"",
        "another": b"phone-99",
        "binary": b"\xff\xfe\x00",
        "NUL": b"\0",
        "10,000 bytes": b"x" * 10_000,
        "JSON": b'{"device": "a"}',
        "a number": (7).to_bytes(4, "big"),
        "a UUID's bytes": bytes(range(16)),
        "a line break": b"a\nb",
    }.items():
        yield name, "device-mismatch", Sent(c.good(), key=key)
        yield f"{name}, batch", "device-mismatch", Sent(c.batch(), key=key)
    for change in (" {}", "{} ", "{}\n", "{}\0", '"{}"', "{}{}", "\ufeff{}"):
        yield (
            f"key {change!r}",
            "device-mismatch",
            Sent(
                c.good(),
                key=change.replace("{}", c.device).encode(),
            ),
        )
    yield "upper case", "device-mismatch", Sent(c.good(), key=c.device.upper().encode())
    yield "null key, null value", "syntax", Sent(None, key=None)
    yield "null key, nonsense", "syntax", Sent(b"nonsense", key=None)


def devices(c: Templates) -> Made:
    for device in (
        *(
            "",
            "a" * 65,
            "a" * 100_000,
            "a b",
            " a",
            "a ",
            "a\n",
            "\ta",
            "a\0",
            "\u200ba",
            "\u202eab",
            "a/b",
            "a\\b",
            "a:b",
        ),
        *(
            "../../etc/passwd",
            "/etc/passwd",
            "C:\\windows",
            "~",
            "$HOME",
            "`id`",
            "$(id)",
            "a;b",
            "a|b",
            "a&b",
            "*",
            "?",
        ),
        *(
            "${jndi:ldap://example.org/a}",
            "'; DROP TABLE devices; --",
            '"',
            "'",
            "<script>alert(1)</script>",
            "%s%n",
            "{0}",
        ),
        *(
            "{{7*7}}",
            "%00",
            "%2e%2e",
            "phöne",
            "电话",
            "📱",
            "Ａ",
            "é",
            "e\u0301",
            "\u0661",
            "a,b",
            "a=b",
            "a@b",
            "a#b",
            "a+b",
        ),
    ):
        yield (
            repr(device)[:40],
            "schema",
            Sent(c.single(device=device), key=device.encode()),
        )
    for device in (
        "a",
        "A",
        "0",
        "-",
        "_",
        ".",
        "..",
        "...",
        "a" * 64,
        "Phone_7.x-1",
        "--help",
        "NULL",
        "nan",
        "con",
        "1e9",
    ):
        yield device, VALID, Sent(c.single(device=device), key=device.encode())


GROUPS = (encoding, syntax, keys, devices)
