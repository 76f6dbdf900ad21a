"""The corpus's messages that are JSON: of wrong types, fields, sizes, numbers or times, and odd ones that are right."""

from __future__ import annotations

import json
import math
from typing import Final

from schemas.activity import CHANNEL_NAMES, CHANNELS, MAX_MESSAGE_BYTES, MAX_READINGS_PER_MESSAGE
from tests.chaos.corpus import DUPLICATE, NOW, VALID, Made, Sent, Templates, raw

REQUIRED: Final = tuple(channel.name for channel in CHANNELS if channel.required)
OPTIONAL: Final = tuple(channel.name for channel in CHANNELS if not channel.required)
NO_NUMBERS: Final = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e400", "1" + "0" * 308 + "e10")
HUGE: Final = ("1e300", "-1e300", "1e308", "1.7976931348623157e308", "1" + "0" * 30, "-1" + "0" * 400, "9" * 5000)
NOT_NUMBERS: Final = (
    '"0.1"',
    '""',
    "true",
    "false",
    "null",
    "[]",
    "[0.1]",
    "{}",
    '{"value": 0.1}',
    '"NaN"',
    '"\\u0661"',
)


def types(c: Templates) -> Made:
    tops = ("[]", "[[]]", "[1]", '""', '"reading"', "0", "1", "-1", "1.5", "true", "false", "null", "{}", '{"a": 1}')
    for text in tops:
        yield f"{text} alone", "schema", text.encode()
    yield "a list of readings", "schema", b"[" + c.good() + b"]"
    yield "a reading as a string", "schema", json.dumps(c.good().decode()).encode()
    yield "a reading in an envelope", "schema", {"data": c.single()}
    for field in ("ts", *CHANNEL_NAMES):
        for text in NOT_NUMBERS:
            if text == "null" and field in OPTIONAL:
                continue
            if field == "ts" and text == "[0.1]":
                continue  # a batch whose channels are none: see below
            yield (
                f"{field} {text}",
                "schema",
                raw(c.single(), **{field: text}),
            )
    for field in ("ts", *CHANNEL_NAMES):
        for text in ("[0.1, null, 0.1]", '[0.1, "0.1", 0.1]', "[0.1, true, 0.1]", "[0.1, [], 0.1]", "[]", "{}", "0.1"):
            if field == "ts" and text == "0.1":
                continue  # a single reading whose channels are lists
            yield (
                f"{field} {text} in a batch",
                "schema",
                raw(c.batch(), **{field: text}),
            )
    others = {
        "seq": ("1.5", '"1"', "true", "[1]", "{}"),
        "act": ("4", "true", '"swim"', '""', '"WLK"', "{}", '["wlk"]', '["swim"]'),
        "subject": ("7", "true", "[]", "{}"),
        "weight": ('"72"', "true", "[]", "{}"),
        "height": ('"178"', "[]"),
        "age": ('"35"', "{}"),
        "gender": ('"m"', "1.5", "true"),
        "trial": ('"1"', "1.5", "[]"),
    }
    for field, texts in others.items():
        for text in texts:
            yield f"{field} {text}", "schema", raw(c.single(), **{field: text})
    for field, text in (("seq", "7"), ("seq", "[0, 1, null]"), ("act", '["wlk", "swim", "wlk"]'), ("subject", '["1"]')):
        yield (
            f"{field} {text} in a batch",
            "schema",
            raw(c.batch(), **{field: text}),
        )
    yield "ts a list, channels not", "schema", c.single(ts=[NOW])
    yield "channels lists, ts not", "schema", c.batch(ts=NOW)


def fields(c: Templates) -> Made:
    for field in ("device", "ts", *REQUIRED):
        yield f"no {field}", "schema", c.single(**{field: ...})
        if field != "ts":
            yield f"no {field} in a batch", "schema", c.batch(**{field: ...})
    for field in ("device", "ts", *REQUIRED):
        renamed = field.replace(".", "_").upper()
        yield (
            f"{renamed} instead of {field}",
            "schema",
            {
                **c.single(**{field: ...}),
                renamed: 0.25,
            },
        )
    for field in ("attitude.roll", "gravity.x"):
        for count in (1, 2, 4, 100):
            yield (
                f"{field} of {count} where ts has 3",
                "schema",
                c.batch(**{field: [0.1] * count}),
            )
    for field, column in (("seq", [1, 2]), ("seq", [1] * 4), ("act", ["wlk"] * 2), ("act", ["wlk"] * 4)):
        yield (
            f"{field} of {len(column)} where ts has 3",
            "schema",
            c.batch(**{field: column}),
        )
    yield "an empty batch", "schema", c.batch(0)
    yield (
        "the last of two devices no text",
        "schema",
        raw(c.single(), device=f'"{c.device}", "device": 7'),
    )
    yield "the last of two ts no number", "schema", raw(c.single(), ts='1700000000, "ts": "now"')


def sizes(c: Templates) -> Made:
    def padded(size: int) -> bytes:
        good = c.good()
        return good[:-1] + b" " * (size - len(good)) + good[-1:]

    for more in (1, 2, 1024, 200_000):
        yield f"{MAX_MESSAGE_BYTES + more} bytes", "oversize", padded(MAX_MESSAGE_BYTES + more)
    for less in (0, 1, 1024):
        yield f"{MAX_MESSAGE_BYTES - less} bytes", VALID, padded(MAX_MESSAGE_BYTES - less)
    yield "x, a megabyte", "oversize", b"x" * 1_000_000
    yield "brackets, too many", "oversize", b"[" * (MAX_MESSAGE_BYTES + 1)
    yield "NUL, a megabyte", "oversize", b"\0" * 1_000_000
    yield "a note of 300 kB", "oversize", {**c.single(), "note": "x" * 300_000}
    yield "a note of 200 kB", VALID, {**c.single(), "note": "x" * 200_000}
    yield "10,000 unknown fields", VALID, {**{f"field{i}": i for i in range(10_000)}, **c.single()}
    few = dict.fromkeys(OPTIONAL, ...)
    for more in (1, 200):
        count = MAX_READINGS_PER_MESSAGE + more
        yield f"{count} readings", "oversize", c.batch(count, **few)
    yield (
        "2,000 times in a batch of 3 values",
        "oversize",
        c.batch(ts=[NOW + i / 50 for i in range(2_000)]),
    )
    for count in (1, 2, 999, 1000):
        yield (
            f"{count} readings",
            VALID,
            c.batch(count, **few),
        )


def numbers(c: Templates) -> Made:
    for field in ("ts", *CHANNEL_NAMES):
        for number in NO_NUMBERS:
            yield (
                f"{field} {number[:20]}",
                "not-finite",
                raw(c.single(), **{field: number}),
            )
        yield (
            f"{field} NaN in a batch",
            "not-finite",
            raw(c.batch(), **{field: "[NaN, NaN, NaN]"}),
        )
    for field in CHANNEL_NAMES:
        for number in HUGE:
            yield (
                f"{field} {number[:20]}, {len(number)} digits",
                "out-of-range",
                raw(c.single(), **{field: number}),
            )
        yield (
            f"{field} 1e300 in a batch",
            "out-of-range",
            raw(c.batch(), **{field: "[1e300, 1e300, 1e300]"}),
        )
    for channel in CHANNELS:
        for end, beyond in ((channel.low, -math.inf), (channel.high, math.inf)):
            yield (
                f"{channel.name} {end}",
                VALID,
                c.single(**{channel.name: end}),
            )
            past = math.nextafter(end, beyond)
            yield (
                f"{channel.name} {past}",
                "out-of-range",
                c.single(**{channel.name: past}),
            )
    for field in ("weight", "height", "age"):
        for number in ("NaN", "-Infinity", "1e999"):
            yield (
                f"{field} {number}",
                "not-finite",
                raw(c.single(), **{field: number}),
            )
    for number in ("-0", "-0.0", "0e0", "0E+5", "1e-400", "5e-324", "1e-308", "0.1e-10", "0." + "1" * 500, "1.0", "1"):
        yield (
            f"attitude.roll {number[:20]}",
            VALID,
            raw(c.single(), **{"attitude.roll": number}),
        )


def times(c: Templates) -> Made:
    day = 24 * 3600.0
    for name, ts, expected in (
        ("0", 0, VALID),
        ("1970", 1.5, VALID),
        ("a whole number", int(NOW), VALID),
        ("an hour ahead", NOW + 3600, VALID),
        ("a day ahead", NOW + day, VALID),
        ("more than a day ahead", NOW + day + 1, "out-of-range"),
        ("a year ahead", NOW + 365 * day, "out-of-range"),
        ("negative", -1.0, "out-of-range"),
        ("just negative", -1e-9, "out-of-range"),
        ("milliseconds", NOW * 1e3, "out-of-range"),
        ("microseconds", NOW * 1e6, "out-of-range"),
        ("nanoseconds", NOW * 1e9, "out-of-range"),
        ("1e300", 1e300, "out-of-range"),
        ("year 9999", 253_402_300_799, "out-of-range"),
        ("2**63", 2**63, "out-of-range"),
        ("-2**63", -(2**63), "out-of-range"),
        ("2**64", 2**64, "out-of-range"),
        ("-0.0", -0.0, VALID),
    ):
        yield name, expected, c.single(ts=ts)
        if expected != VALID:
            yield f"{name}, all of a batch", expected, c.batch(ts=[ts] * 3)
    for text in ('"2023-11-14T22:13:20Z"', '"1700000000"', '"now"', '{"seconds": 1700000000, "nanos": 0}'):
        yield text, "schema", raw(c.single(), ts=text)
    for back in (1e-6, 0.02, 1.0, 3600.0):
        yield (
            f"{back} s before the last one",
            "out-of-order",
            Sent(c.single(ts=NOW - back), before=c.good()),
        )
    yield (
        "the same time, another value",
        "out-of-order",
        Sent(c.single(**{"attitude.roll": 0.26}), before=c.good()),
    )
    yield (
        "the same time, a value less",
        "out-of-order",
        Sent(c.single(**{"gravity.x": ...}), before=c.good()),
    )
    yield "the same reading again", DUPLICATE, Sent(c.single(), before=c.good())
    yield (
        "the same reading again, other fields",
        DUPLICATE,
        Sent(c.single(seq=8, act="sit", weight=70), before=c.good()),
    )
    yield "a batch backwards", "out-of-order", c.batch(ts=[NOW, NOW - 0.02, NOW - 0.04])
    yield "a batch of one moment", "out-of-order", c.batch(ts=[NOW] * 3)


def odd(c: Templates) -> Made:
    """Not what we would write, but within the contract."""
    yield (
        "only what is required",
        VALID,
        {
            "device": c.device,
            "ts": NOW,
            **dict.fromkeys(REQUIRED, 0.0),
        },
    )
    for field in OPTIONAL:
        yield f"no {field}", VALID, c.single(**{field: ...})
        yield f"{field} null", VALID, c.single(**{field: None})
    for field in ("seq", "act", "subject", "weight", "height", "age", "gender", "trial"):
        yield f"{field} null", VALID, c.single(**{field: None})
        yield (
            f"{field} null in a batch",
            VALID,
            c.batch(**{field: None}),
        )
    for field in OPTIONAL:
        yield (
            f"{field} null in a batch",
            VALID,
            c.batch(**{field: None}),
        )
    for number in ("-1", "0", "9223372036854775807", "-9223372036854775808", "9" * 30):
        yield f"seq {number}", VALID, raw(c.single(), seq=number)
    yield "keys backwards", VALID, dict(reversed(c.single().items()))
    yield "spaces", VALID, b" \r\n\t" + c.good() + b" \r\n\t"
    yield "pretty", VALID, json.dumps(c.single(), indent=8).encode()
    yield "compact", VALID, json.dumps(c.single(), separators=(",", ":")).encode()
    yield "escaped names", VALID, c.good().replace(b'"device"', b'"\\u0064evice"')
    yield (
        "an escaped device",
        VALID,
        raw(c.single(), device='"' + "".join(f"\\u{ord(letter):04x}" for letter in c.device) + '"'),
    )
    yield "ts twice, the last one good", VALID, raw(c.single(), ts="1, " + f'"ts": {NOW}')
    for name, text in {
        "NaN": "NaN",
        "Infinity": "-Infinity",
        "a list": "[1, [2, [3]]]",
        "an object": '{"a": {"b": null}}',
        "half a surrogate pair": '"\\ud800"',
        "an emoji": '"📱"',
        "a number of 400 digits": "9" * 400,
        "1e999": "1e999",
        "empty text": '""',
        "nested 100 deep": "[" * 100 + "]" * 100,
    }.items():
        yield f"a field we do not know: {name}", VALID, raw(c.single(), firmware=text)
        yield (
            f"a field we do not know in a batch: {name}",
            VALID,
            raw(c.batch(), firmware=text),
        )
    yield "a field named __proto__", VALID, {**c.single(), "__proto__": {"ts": 0}}
    yield "a field without a name", VALID, {**c.single(), "": 1}
    yield "an activity a reading", VALID, c.batch(act=["wlk", None, "sit"])
    yield (
        "a batch with whole numbers",
        VALID,
        c.batch(**{"attitude.roll": [0, 1, -1]}),
    )
    yield "an unnamed person", VALID, c.single(subject="")
    yield "a person of any name", VALID, c.single(subject="Ωμέγα\u202e'; --")
    yield "a person of no weight", VALID, c.single(weight=0, height=-1, age=1e6)
    for one in (0, 1, 2):
        yield (
            f"one bad reading of three, number {one}",
            "out-of-range",
            c.batch(**{"attitude.roll": [99.0 if i == one else 0.1 for i in range(3)]}),
        )


GROUPS = (types, fields, sizes, numbers, times, odd)
