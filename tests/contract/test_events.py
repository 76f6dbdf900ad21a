"""What is on consumers' topics already, and what must never get past `decode`: the golden files."""

import base64
import json
from pathlib import Path

import jsonschema
import msgspec
import pytest

from schemas.contracts import READING_TYPES, json_schema
from schemas.envelope import decode, encode
from schemas.errors import Reject
from schemas.events import EVENT_TYPES
from schemas.examples import EVENTS, READINGS

GOLDEN = Path(__file__).parent / "golden"
REFUSED = sorted((GOLDEN / "refused").glob("*.json"))
GOLDEN_EVENTS = sorted(GOLDEN.glob("driftloop.*.json"))


def record(path):
    """Key, value and headers of a golden file, as they were on Kafka."""
    golden = json.loads(path.read_text(encoding="utf-8"))
    headers = [(name, content.encode()) for name, content in golden["headers"].items()]
    if "value_base64" in golden:
        return golden["key"].encode(), base64.b64decode(golden["value_base64"]), headers
    return golden["key"].encode(), None if golden["value"] is None else golden["value"].encode(), headers


def by_name(paths):
    return [pytest.param(path, id=path.stem) for path in paths]


@pytest.mark.parametrize("path", by_name(GOLDEN_EVENTS))
def test_an_event_of_any_version_ever_sent_still_reads_as_it_was_meant(path):
    """`model-registered` and `deployed` are kept for ever, so their first records are read by every later release."""
    assert decode(*record(path)) == EVENTS[path.stem]


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_an_event_is_sent_byte_for_byte_as_its_golden_file_says(name):
    """Consumers in other languages were written against these bytes and headers."""
    assert encode(EVENTS[name]) == record(GOLDEN / f"{name}.json")


@pytest.mark.parametrize("path", by_name(GOLDEN_EVENTS))
def test_an_event_that_was_sent_fits_the_published_schema(path):
    """A consumer that validates must not refuse what we send."""
    _, value, _ = record(path)
    jsonschema.Draft202012Validator(json_schema(path.stem)).validate(json.loads(value))


@pytest.mark.parametrize("name", READING_TYPES)
def test_a_reading_reads_as_it_was_meant_is_written_the_same_and_fits_the_published_schema(name):
    """Sensors in the field are not updated with us."""
    key, value, _ = record(GOLDEN / f"{name}.json")
    reading = msgspec.json.decode(value, type=READING_TYPES[name])
    assert reading == READINGS[name]
    assert (reading.device.encode(), msgspec.json.encode(reading)) == (key, value)
    jsonschema.Draft202012Validator(json_schema(name)).validate(json.loads(value))


@pytest.mark.parametrize("name", READING_TYPES)
def test_a_reading_that_the_published_schema_refuses_is_refused_here_too(name):
    """Schema and decoder come from the same type; a producer must be able to trust either."""
    _, value, _ = record(GOLDEN / f"{name}.json")
    validator = jsonschema.Draft202012Validator(json_schema(name))
    for spoilt in ({"device": "no spaces"}, {"device": ""}, {"device": "x" * 65}, {"ts": "now"}, {"act": "swim"}):
        changed = {**json.loads(value), **spoilt}
        assert not validator.is_valid(changed), spoilt
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(msgspec.json.encode(changed), type=READING_TYPES[name])


@pytest.mark.parametrize("name", [*EVENT_TYPES, *READING_TYPES])
def test_a_field_that_nobody_knows_yet_is_ignored(name):
    """Producers may be newer than consumers; an added field is not a new version."""
    key, value, headers = record(GOLDEN / f"{name}.json")
    newer = {**json.loads(value), "tomorrow": {"x": 1}}
    jsonschema.Draft202012Validator(json_schema(name)).validate(newer)
    if name in EVENT_TYPES:
        assert decode(key, json.dumps(newer).encode(), headers) == EVENTS[name]
    else:
        assert msgspec.json.decode(json.dumps(newer), type=READING_TYPES[name]) == READINGS[name]


@pytest.mark.parametrize("path", by_name(REFUSED))
def test_what_can_never_work_is_refused_under_its_published_class(path):
    """Operators filter dead letters by class; a class that wanders hides them."""
    with pytest.raises(Reject) as refused:
        decode(*record(path))
    assert refused.value.reject_class == json.loads(path.read_text(encoding="utf-8"))["class"]


def test_every_class_of_refusal_has_an_example():
    """Without one, a class could vanish unseen."""
    classes = {json.loads(path.read_text(encoding="utf-8"))["class"] for path in REFUSED}
    assert classes == {"schema-unsupported", "schema", "syntax", "encoding"}


def test_an_event_that_is_refused_for_a_field_does_not_fit_the_published_schema_either():
    """A producer that validates before it sends never ends up in the dead letters for its fields."""
    fields = [path for path in REFUSED if json.loads(path.read_text(encoding="utf-8"))["class"] == "schema"]
    assert fields
    for path in fields:
        _, value, headers = record(path)
        kind = dict(headers)["ce_type"].decode()
        assert not jsonschema.Draft202012Validator(json_schema(kind)).is_valid(json.loads(value)), path.name
