"""What is generated into the repository is what the code says today, and says it so that others can use it."""

import re

import jsonschema
import pytest
import yaml

from schemas import generate
from schemas.contracts import CONTRACT_TYPES, json_schema
from schemas.events import EVENT_TYPES
from schemas.topology import DEAD_LETTER_TOPICS, TOPICS

SCHEMAS = generate.ROOT / "schemas"


@pytest.fixture(scope="module")
def document():
    return yaml.safe_load((SCHEMAS / "asyncapi.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def checkout(tmp_path):
    """Generated and golden files as the code says today, to be spoilt."""
    generate.write(tmp_path)
    assert generate.differing(tmp_path) == []
    return tmp_path


def test_generated_files_are_what_the_code_says():
    """A type changed without `make contracts` would publish a contract that nobody keeps."""
    assert generate.differing() == []


def test_a_generated_file_that_differs_is_named_and_written_anew(checkout):
    """CI has to say which file, and `make contracts` has to mend it."""
    spoilt = checkout / "schemas" / "json" / "reading.json"
    spoilt.write_text("{}")
    (wrong,) = generate.differing(checkout)
    assert wrong.startswith(str(spoilt))
    assert generate.write(checkout) == [spoilt]
    assert generate.differing(checkout) == []


def test_a_golden_file_is_never_written_over(checkout):
    """It stands for records that consumers hold already; if it could follow the code, it would prove nothing."""
    golden = checkout / "tests" / "contract" / "golden" / "driftloop.drift.detected.v1.json"
    golden.write_text("{}")
    assert generate.write(checkout) == []
    (wrong,) = generate.differing(checkout)
    assert wrong.startswith(str(golden))


def test_a_new_event_gets_its_golden_file(checkout):
    """The one moment at which a golden file is written."""
    golden = checkout / "tests" / "contract" / "golden" / "driftloop.drift.detected.v1.json"
    before = golden.read_text(encoding="utf-8")
    golden.unlink()
    assert len(generate.differing(checkout)) == 1
    assert generate.write(checkout) == [golden]
    assert golden.read_text(encoding="utf-8") == before


def test_a_schema_whose_type_is_gone_is_named(checkout):
    """A version that was sent once stays readable, so its type cannot just be deleted."""
    orphan = checkout / "schemas" / "json" / "driftloop.drift.detected.v0.json"
    orphan.write_text("{}")
    (wrong,) = generate.differing(checkout)
    assert wrong.startswith(str(orphan))


def test_check_exits_1_and_names_the_file(monkeypatch, capsys):
    """That is all that a CI job looks at."""
    monkeypatch.setattr(generate, "differing", lambda: ["schemas/json/reading.json: not what the code says"])
    assert generate.main(["--check"]) == 1
    assert "schemas/json/reading.json" in capsys.readouterr().err
    monkeypatch.setattr(generate, "differing", list)
    assert generate.main(["--check"]) == 0


@pytest.mark.parametrize("name", CONTRACT_TYPES)
def test_a_schema_is_valid_and_portable(name):
    r"""Validators of other languages read it: no host to fetch from, no Python-only pattern such as \Z."""
    schema = json_schema(name)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"{name}.json"
    assert schema["title"] == CONTRACT_TYPES[name].__name__
    assert schema["description"]
    assert r"\Z" not in str(schema)


def test_the_asyncapi_channels_are_the_topology(document):
    """People provision their own Kafka from this document."""
    channels = {
        (
            channel["address"],
            channel["bindings"]["kafka"]["partitions"],
            channel["bindings"]["kafka"]["topicConfiguration"]["cleanup.policy"][0],
            channel["bindings"]["kafka"]["topicConfiguration"].get("retention.ms"),
            channel["bindings"]["kafka"]["topicConfiguration"].get("max.message.bytes"),
        )
        for channel in document["channels"].values()
    }
    assert channels == {(t.name, t.partitions, t.cleanup, t.retention_ms, t.max_message_bytes) for t in TOPICS}
    assert list(document["channels"]) == [topic.name for topic in TOPICS]


def test_the_asyncapi_operations_are_who_writes_and_who_reads(document):
    """Access rights are read off here."""
    operations = {
        (operation["tags"][0]["name"], operation["action"], operation["channel"]["$ref"].removeprefix("#/channels/"))
        for operation in document["operations"].values()
    }
    assert operations == {(process, "send", topic.name) for topic in TOPICS for process in topic.written_by} | {
        (process, "receive", topic.name) for topic in TOPICS for process in topic.read_by
    }


def test_every_reference_of_the_asyncapi_document_leads_somewhere(document):
    """A broken one stops every generator of clients."""
    text = (SCHEMAS / "asyncapi.yaml").read_text(encoding="utf-8")
    references = set(re.findall(r"\$ref: '?([^'\n]+)", text))
    assert len(references) > len(TOPICS)
    for reference in references:
        if reference.startswith("./"):
            assert (SCHEMAS / reference).is_file(), reference
            continue
        found = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in found, reference
            found = found[part]


def test_the_asyncapi_document_names_every_event_with_its_headers_and_an_example_that_fits(document):
    """Header names are the only way to tell one event of a topic from another."""
    messages = {message["name"]: message for message in document["components"]["messages"].values()}
    for name in EVENT_TYPES:
        headers = messages[name]["headers"]
        assert set(headers["required"]) >= {
            "ce_specversion",
            "ce_id",
            "ce_source",
            "ce_type",
            "ce_time",
            "ce_subject",
            "content-type",
            "traceparent",
        }
        assert messages[name]["payload"] == {"$ref": f"./json/{name}.json"}
        assert "key" in messages[name]["bindings"]["kafka"]
        (example,) = messages[name]["examples"]
        jsonschema.Draft202012Validator(headers).validate(example["headers"])
        jsonschema.Draft202012Validator(json_schema(name)).validate(example["payload"])


def test_a_dead_letter_says_where_it_was_and_why(document):
    """Programs of other people replay dead letters by these headers."""
    properties = document["components"]["messages"]["DeadLetter"]["headers"]["properties"]
    assert list(properties) == [
        f"dlq.{name}" for name in ("topic", "partition", "offset", "timestamp", "class", "reason", "version")
    ]
    for topic in DEAD_LETTER_TOPICS:
        assert list(document["channels"][topic.name]["messages"]) == ["DeadLetter"]


def test_the_asyncapi_document_names_no_host(document):
    """The address of a broker belongs to whoever runs it."""
    assert [server["host"] for server in document["servers"].values()] == ["{bootstrap}"]
