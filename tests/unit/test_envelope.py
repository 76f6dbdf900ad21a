"""Events on the wire: the identity survives the trip, and no bytes whatever end a consumer."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.envelope import Envelope, decode, encode, envelope, traceparent
from schemas.errors import Reject
from schemas.events import DecisionMade, event_id

DECISION = DecisionMade(
    model="activity",
    about="retrain",
    outcome="deferred",
    reason="cooldown",
    detail="Zwölf Minuten",
    concerns=["a"],
    ts=1.5,
)
SENT = envelope(DECISION, id="id-1", source="driftloop/retrain", subject="activity", time=1700000000.25, root="id-0")
VALUE = {
    "model": "activity",
    "about": "retrain",
    "outcome": "d",
    "reason": "r",
    "detail": "",
    "concerns": [],
    "ts": 1.0,
}
HEADERS = [
    ("ce_specversion", b"1.0"),
    ("ce_id", b"id-1"),
    ("ce_source", b"driftloop/retrain"),
    ("ce_type", b"driftloop.decision.made.v1"),
]
STRUCTURED = {
    "specversion": "1.0",
    "id": "id-1",
    "source": "driftloop/retrain",
    "type": "driftloop.decision.made.v1",
    "subject": "activity",
    "time": "2023-11-14T22:13:20.250000Z",
    "data": VALUE,
}


def structured(**changes):
    """Value and headers of an event in structured mode."""
    return json.dumps({**STRUCTURED, **changes}).encode(), [("content-type", b"application/cloudevents+json")]


def test_an_event_comes_out_as_it_went_in():
    """Id, root and time are how repetitions are dropped and chains are told."""
    assert decode(*encode(SENT)) == SENT


@given(
    detail=st.text(),
    ts=st.floats(allow_nan=False, allow_infinity=False),
    time=st.floats(0, 4e9),
    id=st.text(min_size=1),
)
@settings(max_examples=50, deadline=None)
def test_any_event_comes_out_as_it_went_in(detail, ts, time, id):
    """A detail is free text: a person's words, or an error message of somebody's server."""
    event = DecisionMade(
        model="activity", about="deploy", outcome="failed", reason="r", detail=detail, concerns=[], ts=ts
    )
    sent = envelope(event, id=id, source="driftloop/deploy", subject="activity", time=time)
    assert decode(*encode(sent)) == sent


def test_an_event_about_nothing_in_particular_has_no_subject():
    """CloudEvents forbids an empty one; an event that came without must still be passed on."""
    sent = envelope(DECISION, id="id-1", source="driftloop/retrain", subject="", time=0)
    assert "ce_subject" not in dict(encode(sent)[2])
    assert decode(*encode(sent)) == sent


def test_a_consumer_that_knows_nothing_of_cloudevents_just_reads_json():
    """`kcat | jq` is a consumer too."""
    key, value, _ = encode(SENT)
    assert key == b"activity"
    assert json.loads(value)["detail"] == "Zwölf Minuten"


def test_a_chain_is_one_trace_with_a_span_for_each_event():
    """Any tracing tool then draws drift → registered → deployed without knowing us."""
    _, version, trace, span, _ = ("", *traceparent("root", "child").split("-"))
    assert (version, len(trace), len(span)) == ("00", 32, 16)
    assert traceparent("root", "other").split("-")[1] == trace
    assert traceparent("root", "other").split("-")[2] != span
    assert traceparent("another", "child").split("-")[1] != trace
    assert dict(encode(SENT)[2])["traceparent"] == traceparent("id-0", "id-1").encode()


def test_an_event_that_begins_a_chain_is_its_own_root():
    """Otherwise the first drift of a chain would not be found by its trace."""
    assert envelope(DECISION, id="x", source="s", subject="", time=0).root == "x"


def test_structured_mode_is_accepted():
    """CloudEvents gateways and SDKs send it."""
    received = decode(None, *structured())
    assert (received.id, received.subject, received.event.model) == ("id-1", "activity", "activity")
    assert received.time == datetime(2023, 11, 14, 22, 13, 20, 250000, UTC)


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_an_event_without_an_id_is_refused(mode):
    """With an id of chance, the same event would start a retraining at each delivery."""
    binary = json.dumps(VALUE).encode(), [header for header in HEADERS if header[0] != "ce_id"]
    no_id = json.dumps({name: value for name, value in STRUCTURED.items() if name != "id"}).encode(), []
    with pytest.raises(Reject, match="id") as refused:
        decode(None, *(binary if mode == "binary" else no_id))
    assert refused.value.reject_class == "syntax"


def test_an_event_without_a_time_reads_the_same_at_any_time():
    """The time of day in an event would make a replay differ from the first run."""
    assert decode(None, json.dumps(VALUE).encode(), HEADERS).time == datetime.fromtimestamp(0, UTC)


def test_headers_of_others_are_nobody_s_business():
    """Tracers and proxies add binary headers; an event must not be dead-lettered for them."""
    assert decode(None, json.dumps(VALUE).encode(), [*HEADERS, ("b3", b"\xff\xfe"), ("x", None)]).id == "id-1"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_refused(number):
    """Python's JSON parser lets them through, and a NaN makes every comparison false."""
    with pytest.raises(Reject) as refused:
        decode(None, json.dumps(VALUE).replace("1.0", number).encode(), HEADERS)
    assert refused.value.reject_class == "syntax"


def test_the_reason_of_a_refusal_says_which_attribute_and_fits_a_header():
    """It is all that a person sees of a dead letter."""
    with pytest.raises(Reject, match="source") as refused:
        decode(None, *structured(source=5))
    assert "\n" not in refused.value.reason
    with pytest.raises(Reject) as refused:
        decode(None, *structured(type="x" * 5000))
    assert len(refused.value.reason) <= 1000


def test_an_id_is_the_same_for_the_same_parts_and_differs_otherwise():
    """Consumers drop ids they have seen, so a collision loses an event and a change repeats one."""
    assert event_id("activity", 2, 81231) == "9778fe7b310b46f873d3ba95aacf0f01"
    assert event_id("activity", 2, 81231) != event_id("activity", 28, 1231)
    assert len(event_id("x")) == 32


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
header_names = st.sampled_from([name for name, _ in HEADERS] + ["ce_time", "ce_subject", "content-type", "CE_ID"])
header_values = st.binary(max_size=30) | st.sampled_from(
    [content for _, content in HEADERS]
    + [b"application/json", b"application/cloudevents+json", b"text/plain", b"9999-12-31T24:00:00Z", b"2020-01-01", b""]
)
values = (
    st.binary(max_size=60)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.builds(
        lambda changes: json.dumps({**VALUE, **changes}).encode(),
        st.dictionaries(st.sampled_from([*VALUE, "numbers"]), json_values, max_size=2),
    )
    | st.builds(
        lambda changes: json.dumps({**STRUCTURED, **changes}).encode(),
        st.dictionaries(
            st.sampled_from([*STRUCTURED, "data_base64", "datacontentencoding", "driftlooproot"]),
            json_values,
            max_size=2,
        ),
    )
)


@given(
    headers=st.none()
    | st.lists(st.tuples(header_names | st.text(max_size=5), st.none() | header_values), max_size=4)
    | st.lists(st.tuples(header_names, header_values), max_size=2).map(lambda added: [*HEADERS, *added]),
    value=st.none() | values,
)
@example(headers=HEADERS, value=b"[" * 100_000)
@example(headers=None, value=b"[" * 100_000)
@example(headers=[*HEADERS, ("ce_time", b"9999-12-31T24:00:00Z")], value=json.dumps(VALUE).encode())
@example(headers=HEADERS, value=json.dumps({**VALUE, "ts": 10**400}).encode())
@example(headers=HEADERS, value=json.dumps({**VALUE, "detail": "\ud800"}).encode())
@example(headers=None, value=json.dumps({**STRUCTURED, "id": "\ud800"}).encode())
@settings(max_examples=300, deadline=None)
def test_whatever_arrives_is_an_event_that_can_be_sent_on_or_a_refusal(headers, value):
    """Any other exception ends the worker, and the record that did it is read again after the restart."""
    try:
        received = decode(None, value, headers)
    except Reject:
        return
    assert isinstance(received, Envelope)
    encode(received)
