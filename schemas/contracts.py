"""The contracts in the words of others: JSON Schema (draft 2020-12) and AsyncAPI 3.0, from the types and the topology.

Pure: names and texts of files come out, `schemas.generate` writes them.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
import yaml

from schemas.activity import REJECT_CLASSES, Reading, ReadingBatch
from schemas.envelope import encode
from schemas.events import EVENT_TYPES, WindowStatistics
from schemas.examples import EVENTS, PLAIN
from schemas.metrics import METRICS
from schemas.settings import Settings, variable
from schemas.topology import DEAD_LETTER_TOPICS, TOPICS, Topic

Json = dict[str, Any]

READING_TYPES: Final[dict[str, type]] = {"reading": Reading, "reading-batch": ReadingBatch}
# Plain JSON, keyed by its device, without an envelope.
PLAIN_TYPES: Final[dict[str, type]] = {**READING_TYPES, "window-statistics": WindowStatistics}
CONTRACT_TYPES: Final[dict[str, type]] = {**EVENT_TYPES, **PLAIN_TYPES}
_NUMERIC_CONFIG: Final = ("retention.ms", "max.message.bytes")
_KAFKA_BINDING: Final = {"bindingVersion": "0.5.0"}

EVENT_HEADERS: Final = {
    "ce_specversion": "CloudEvents version.",
    "ce_id": "Deterministic: the same input gives the same id after any crash; drop an id that you have seen.",
    "ce_source": "The process that sent it.",
    "ce_type": "Which event, and its version.",
    "ce_time": "When it happened, RFC 3339.",
    "ce_subject": "What it is about.",
    "ce_driftlooproot": "Id of the event that began the chain.",
    "content-type": "Of the value.",
    "traceparent": "W3C trace context: one trace for a whole chain.",
}
DEAD_LETTER_HEADERS: Final = {
    "dlq.topic": "Where the record was read.",
    "dlq.partition": "Its partition there, decimal.",
    "dlq.offset": "Its offset there, decimal.",
    "dlq.timestamp": "Its Kafka timestamp, milliseconds since the epoch, decimal.",
    "dlq.class": "Why it can never work; further classes may come.",
    "dlq.reason": "The same for a person, at most 1 kB.",
    "dlq.version": "Version of these headers.",
}


def json_schema(name: str) -> Json:
    """The JSON Schema of an event type or of a shape of readings. Fields that it does not name are allowed."""
    (root,), components = msgspec.json.schema_components([CONTRACT_TYPES[name]], ref_template="#/$defs/{name}")
    own = components.pop(root["$ref"].removeprefix("#/$defs/"))
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{name}.json",
        **own,
        **({"$defs": dict(sorted(components.items()))} if components else {}),
    }
    portable: Json = _portable(schema)
    return portable


def _portable(schema: Any) -> Any:
    """A schema as others can use it: descriptions without Python's indentation, patterns in ECMA's dialect."""
    if isinstance(schema, list):
        return [_portable(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    tidy = {key: _portable(value) for key, value in schema.items()}
    if isinstance(text := tidy.get("description"), str):
        tidy["description"] = "\n".join(line.strip() for line in text.splitlines())
    if isinstance(pattern := tidy.get("pattern"), str):
        tidy["pattern"] = pattern.replace(r"\Z", "$")  # ECMA's $ is the end of the text, Python's is not
    return tidy


def asyncapi() -> Json:
    """The AsyncAPI document: a channel for each topic, an operation for each process that writes or reads it."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Driftloop",
            "version": "1.0.0",
            "description": "Sensor readings in; drifts, decisions, registered and deployed models out.\n"
            "Made from schemas/topology.py by `make contracts`; do not edit.\n"
            "A setting may put a namespace before every topic's name.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": "{bootstrap}",
                "protocol": "kafka",
                "variables": {"bootstrap": {"description": "host:port of your Kafka: DRIFTLOOP_KAFKA_BOOTSTRAP"}},
            }
        },
        "channels": {topic.name: _channel(topic) for topic in TOPICS},
        "operations": {
            f"{process}-{verb}-{topic.name}": _operation(process, action, topic)
            for topic in TOPICS
            for verb, action, processes in (
                ("sends", "send", topic.written_by),
                ("receives", "receive", topic.read_by),
            )
            for process in processes
        },
        "components": {
            "messages": {
                **{cls.__name__: _reading_message(name, cls) for name, cls in PLAIN_TYPES.items()},
                **{cls.__name__: _event_message(name, cls) for name, cls in EVENT_TYPES.items()},
                "DeadLetter": _dead_letter_message(),
            }
        },
    }


def _messages_on(topic: Topic) -> tuple[str, ...]:
    return ("DeadLetter",) if topic in DEAD_LETTER_TOPICS else tuple(cls.__name__ for cls in topic.carries)


def _channel(topic: Topic) -> Json:
    config: Json = {"cleanup.policy": [topic.cleanup]}
    config |= {key: int(topic.config[key]) for key in _NUMERIC_CONFIG if key in topic.config}
    messages = _messages_on(topic)
    about = f"Key: {topic.key}. Written by {', '.join(topic.written_by)}; read by {', '.join(topic.read_by)}."
    if topic.cleanup == "compact" and messages:
        about += " The last record of a key counts; a null value says that it is retired."
    if not messages:
        about += " Internal: what is in it may change with any version."
    return {
        "address": topic.name,
        "description": about,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": config,
                **_KAFKA_BINDING,
            }
        },
    }


def _operation(process: str, action: str, topic: Topic) -> Json:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{topic.name}"},
        "tags": [{"name": process}],
        "messages": [{"$ref": f"#/channels/{topic.name}/messages/{name}"} for name in _messages_on(topic)],
    }


def _key(description: str) -> Json:
    return {"kafka": {"key": {"type": "string", "description": description}, **_KAFKA_BINDING}}


def _reading_message(name: str, cls: type) -> Json:
    return {
        "name": name,
        "title": cls.__name__,
        "contentType": "application/json",
        "payload": {"$ref": f"./json/{name}.json"},
        "bindings": _key("Device id, the same as in the value."),
        "examples": [{"payload": msgspec.to_builtins(PLAIN[name])}],
    }


def _event_message(name: str, cls: type) -> Json:
    properties: Json = {header: {"type": "string", "description": text} for header, text in EVENT_HEADERS.items()}
    properties["ce_specversion"]["const"] = "1.0"
    properties["ce_type"]["const"] = name
    properties["ce_time"]["format"] = "date-time"
    properties["content-type"]["const"] = "application/json"
    properties["traceparent"]["pattern"] = "^00-[0-9a-f]{32}-[0-9a-f]{16}-01$"
    _, _, headers = encode(EVENTS[name])
    return {
        "name": name,
        "title": cls.__name__,
        "contentType": "application/json",
        "headers": {"type": "object", "required": list(EVENT_HEADERS), "properties": properties},
        "payload": {"$ref": f"./json/{name}.json"},
        "bindings": _key("The model's name."),
        "examples": [
            {
                "headers": {header: content.decode() for header, content in headers},
                "payload": msgspec.to_builtins(EVENTS[name].event),
            }
        ],
    }


def _dead_letter_message() -> Json:
    properties: Json = {name: {"type": "string", "description": text} for name, text in DEAD_LETTER_HEADERS.items()}
    properties["dlq.class"]["examples"] = [*REJECT_CLASSES, "schema-unsupported"]
    for number in ("dlq.partition", "dlq.offset", "dlq.timestamp"):
        properties[number]["pattern"] = "^-?[0-9]+$"
    return {
        "name": "dead-letter",
        "title": "DeadLetter",
        "summary": "A record that can never work: key, value and headers as received, and why.",
        "contentType": "application/octet-stream",
        "headers": {"type": "object", "required": list(DEAD_LETTER_HEADERS), "properties": properties},
        "payload": {"type": "string", "description": "The raw bytes as received."},
        "bindings": _key("As received."),
    }


def generated_files() -> dict[str, str]:
    """Name under `schemas/` → text of every generated file."""
    texts = {f"json/{name}.json": _pretty(json_schema(name)) for name in CONTRACT_TYPES}
    return {
        **texts,
        "asyncapi.yaml": yaml.dump(asyncapi(), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=110),
    }


def golden_files() -> dict[str, str]:
    """Name under `tests/contract/golden/` → text of every golden file that today's code can write."""
    golden = {name: _golden(*encode(EVENTS[name])) for name in EVENT_TYPES}
    golden |= {name: _golden(r.device.encode(), msgspec.json.encode(r), []) for name, r in PLAIN.items()}
    return {f"{name}.json": text for name, text in golden.items()}


def _golden(key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> str:
    named = {name: content.decode() for name, content in headers}
    return _pretty({"key": key.decode(), "headers": named, "value": value.decode()})


def _pretty(value: Json) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


class _Plain(yaml.SafeDumper):
    """YAML without anchors: what is said twice stands there twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def topics_table() -> str:
    """The topics as a Markdown table for the README."""
    rows = ["| topic | carries | key | from → to | partitions | kept |", "|---|---|---|---|---|---|"]
    for topic in TOPICS:
        carries = ", ".join(f"`{cls.__name__}`" for cls in topic.carries) or "internal"
        if topic in DEAD_LETTER_TOPICS:
            carries = "raw bytes"
        way = f"{', '.join(topic.written_by)} → {', '.join(topic.read_by)}"
        rows.append(f"| `{topic.name}` | {carries} | {topic.key} | {way} | {topic.partitions} | {_kept(topic)} |")
    return "\n".join(rows) + "\n"


def _kept(topic: Topic) -> str:
    if topic.cleanup == "compact":
        return "the last of each key"
    if topic.retention_ms is None:
        return "as the broker says"
    hours = topic.retention_ms // 3_600_000
    return "for ever" if hours < 0 else f"{hours // 24} days" if hours >= 24 else f"{hours} hours"


def metrics_table() -> str:
    """The metrics as a Markdown table for the README."""
    rows = ["| metric | kind | unit | labels | of | meaning |", "|---|---|---|---|---|---|"]
    for each in METRICS:
        labels = ", ".join(f"`{label}`" for label in each.labels)
        rows.append(f"| `{each.name}` | {each.kind} | {each.unit} | {labels} | {each.process} | {each.help} |")
    return "\n".join(rows) + "\n"


def settings_table() -> str:
    """The settings as a Markdown table for the README."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`" if str(field.default) else "empty"
        rows.append(f"| `{variable(name)}` | {default} | {field.description} |")
    return "\n".join(rows) + "\n"
