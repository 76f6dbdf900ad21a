"""Events on the wire: CloudEvents 1.0 over Kafka in binary mode.

The value is plain JSON, so a consumer that knows nothing of CloudEvents just reads it; id, type, source, subject
and time are headers, and `traceparent` (W3C) ties an event to the one that began its chain.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

import msgspec
from cloudevents.core.bindings.kafka import KafkaMessage, from_kafka, to_binary_event
from cloudevents.core.exceptions import BaseCloudEventException
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from schemas.errors import Reject
from schemas.events import EVENT_TYPES, Event, type_of

Headers = list[tuple[str, bytes]]

_NO_TIME: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Envelope:
    """One event with its identity. root: the id of the event that began the chain; its own id if it began one."""

    id: str
    event: Event
    source: str
    subject: str
    time: datetime
    root: str


def traceparent(root: str, event_id: str) -> str:
    """W3C trace context: one trace for a whole chain, one span for each event; deterministic."""
    return f"00-{sha256(root.encode()).hexdigest()[:32]}-{sha256(event_id.encode()).hexdigest()[:16]}-01"


def envelope(event: Event, *, id: str, source: str, subject: str, time: float, root: str | None = None) -> Envelope:
    """An event ready to be sent. time: seconds since the epoch."""
    return Envelope(id, event, source, subject, datetime.fromtimestamp(time, UTC), root or id)


def encode(enveloped: Envelope) -> tuple[bytes, bytes, Headers]:
    """Kafka key (the model's name), value and headers of an event."""
    cloud = CloudEvent(
        {
            "specversion": "1.0",
            "id": enveloped.id,
            "type": type_of(enveloped.event),
            "source": enveloped.source,
            **({"subject": enveloped.subject} if enveloped.subject else {}),
            "time": enveloped.time,
            "datacontenttype": "application/json",
            "driftlooproot": enveloped.root,
        },
        msgspec.json.encode(enveloped.event).decode(),
    )
    message = to_binary_event(cloud, JSONFormat())
    headers = [*message.headers.items(), ("traceparent", traceparent(enveloped.root, enveloped.id).encode())]
    return enveloped.event.model.encode(), message.value, headers


def decode(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] | None) -> Envelope:
    """The event of a Kafka record, binary or structured mode.

    Raises Reject: `encoding` or `syntax` (no readable CloudEvent), `schema-unsupported` (a type or version that this
    program does not know), `schema` (known, but fields are wrong).
    """
    if value is None:
        raise Reject("syntax", "a null value is no event")
    # The library decodes every header that it is given; what others add (a tracer's binary context) is theirs.
    ours = {name: content or b"" for name, content in headers or () if _is_cloud_event_header(name)}
    try:
        cloud = from_kafka(KafkaMessage(headers=ours, key=None, value=value), JSONFormat(), _cloud_event)
        kind, id, source = cloud.get_type(), cloud.get_id(), cloud.get_source()
        subject, time = cloud.get_subject() or "", cloud.get_time() or _NO_TIME
        root = str(cloud.get_extension("driftlooproot") or id)
        "".join((kind, id, source, subject, root)).encode()  # JSON can hold half a surrogate pair, UTF-8 cannot
    except UnicodeDecodeError as error:
        raise Reject("encoding", f"a header or the value is not UTF-8: {error}") from error
    except _NOT_A_CLOUD_EVENT as error:
        reason = " ".join(str(error).split())
        raise Reject("syntax", f"not a CloudEvent: {type(error).__name__}: {reason}") from error
    event_type = EVENT_TYPES.get(kind)
    if event_type is None:
        raise Reject("schema-unsupported", f"event type {kind!r} is not known here; known: {', '.join(EVENT_TYPES)}")
    data = cloud.get_data()
    if not isinstance(data, dict):  # the library hands back what it cannot parse as it came
        raise Reject("encoding" if isinstance(data, bytes) else "syntax", "the value is not a JSON object")
    try:
        # Once more through JSON: the library's parser takes NaN, Infinity and half surrogate pairs, msgspec's does not.
        event = msgspec.json.decode(json.dumps(data), type=event_type)
    except msgspec.ValidationError as error:
        raise Reject("schema", str(error)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise Reject("syntax", str(error)) from error
    return Envelope(id, event, source, subject, time, root)


# What the library, dateutil and json raise for bytes that nobody expected.
_NOT_A_CLOUD_EVENT: Final = (
    BaseCloudEventException,
    BaseExceptionGroup,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,  # a time past the year 9999
    RecursionError,  # brackets nested a thousand deep
)


def _is_cloud_event_header(name: str) -> bool:
    return name.lower().startswith("ce_") or name.lower() == "content-type"


def _cloud_event(attributes: dict[str, Any], data: Any) -> CloudEvent:
    """An event of what is there: left alone, the library draws a random id and takes the time of day."""
    if "id" not in attributes:
        raise ValueError("it has no id")
    attributes.setdefault("time", _NO_TIME)
    return CloudEvent(attributes, data)
