"""What the endpoint promises: MLflow's protocol, windows for readings, a helpful answer to whatever is wrong."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import pytest
from fastapi.testclient import TestClient
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_info

from deploy.serving import MAX_BODY_BYTES, ServedModel, create_app
from schemas.errors import Reject

COLUMNS = ("low", "mid.x", "high")
READING = {
    "device": "phone-07",
    "ts": 1700000000.0,
    "attitude.roll": 0.1,
    "attitude.pitch": 0.2,
    "attitude.yaw": 0.3,
    "userAcceleration.x": 0.4,
    "userAcceleration.y": 0.5,
    "userAcceleration.z": 0.6,
}
ROW = [[1.0, 2.0, 3.0]]


def featurise(readings, columns):
    """One window of three features for every 128 readings; a roll of 9 is out of range."""
    for at, reading in enumerate(readings):
        if reading.attitude_roll == 9:
            raise Reject("out-of-range", f"readings[{at}].attitude.roll: 9 rad is no angle")
    starts = np.array([reading.ts for reading in readings[: len(readings) // 128 * 128 : 128]])
    return starts, np.ones((len(starts), len(columns)))


@pytest.fixture(scope="module")
def pipeline():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 3))
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, np.where(rows[:, 0] > 0, "wlk", "sit"))


def client_of(pipeline, featurise=featurise):
    app = create_app(ServedModel("activity", "7", "sha256:00", COLUMNS, pipeline), featurise)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(pipeline):
    with client_of(pipeline) as client:
        yield client


def posted(client, path, content):
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return client.post(path, content=body, headers={"content-type": "application/json"})


def readings(count, **changes):
    return [READING | {"ts": READING["ts"] + at / 50} for at in range(count - 1)] + [
        READING | {"ts": READING["ts"] + (count - 1) / 50} | changes
    ]


def test_the_server_says_when_it_is_ready_and_which_model_it_is(client):
    """The deployer compares the digest, so a wrong process on the right port is noticed."""
    assert client.get("/ping").status_code == 200
    assert client.get("/version").json() == {"model": "activity", "version": "7", "digest": "sha256:00"}


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["high", "low", "mid.x"], "data": [[3, 1, 2.0], [3, -1, 2]]}},
        {"dataframe_split": {"columns": list(COLUMNS), "index": [4, 5], "data": [[1, 2, 3], [-1, 2, 3]]}},
        {"dataframe_records": [{"low": 1, "mid.x": 2, "high": 3}, {"high": 3, "mid.x": 2, "low": -1}]},
        {"instances": [{"low": 1, "mid.x": 2, "high": 3}, {"low": -1, "mid.x": 2, "high": 3}]},
        {"instances": [[1, 2, 3], [-1, 2, 3]]},
        {"inputs": [[1, 2, 3], [-1, 2, 3]], "params": {}},
        {"inputs": {"low": [1, -1], "mid.x": [2, 2], "high": [3, 3]}},
    ],
    ids=lambda body: next(iter(body)),
)
def test_rows_come_in_each_of_mlflows_forms(client, body):
    """Columns are found by name, whatever their order."""
    reply = posted(client, "/invocations", body)
    assert (reply.status_code, reply.json()) == (200, {"predictions": ["wlk", "sit"]})


def test_a_single_row_may_come_as_bare_numbers_by_column(client):
    """MLflow takes it, so we do."""
    reply = posted(client, "/invocations", {"inputs": {"low": 1, "mid.x": 2, "high": 3}})
    assert reply.json() == {"predictions": ["wlk"]}


def records(**changes):
    return {"dataframe_records": [{"low": 1, "mid.x": 2, "high": 3}, {"low": 1, "mid.x": 2, "high": 3} | changes]}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"dataframe_split": {"columns": ["low", "high"], "data": [[1, 2]]}}, "mid.x"),
        ({"dataframe_split": {"columns": [*COLUMNS, "more"], "data": [[1, 2, 3, 4]]}}, "more"),
        ({"dataframe_split": {"columns": [*COLUMNS, "low"], "data": [[1, 2, 3, 4]]}}, "dataframe_split"),
        ({"dataframe_split": {"columns": list(COLUMNS), "data": [[1, 2, 3], [1, 2]]}}, "dataframe_split.data[1]"),
        ({"dataframe_split": {"columns": list(COLUMNS), "data": [[1, 2, "3"]]}}, "dataframe_split[0].high"),
        ({"dataframe_split": {"columns": "low", "data": ROW}}, "dataframe_split.columns"),
        ({"dataframe_split": {"columns": list(COLUMNS), "data": 3}}, "dataframe_split.data"),
        ({"dataframe_split": {"data": ROW}}, "dataframe_split"),
        ({"dataframe_split": ROW}, "dataframe_split"),
        (records(high=None), "dataframe_records[1].high"),
        (records(high=True), "dataframe_records[1].high"),
        (records(high=10**400), "dataframe_records[1].high"),
        (records(more=1), "dataframe_records[1].more"),
        ({"dataframe_records": [{"low": 1, "high": 3}]}, "mid.x"),
        ({"dataframe_records": {"low": [1]}}, "dataframe_records"),
        ({"dataframe_records": [3]}, "dataframe_records[0]"),
        ({"dataframe_records": ROW}, "dataframe_records[0]"),
        ({"instances": [[1, 2]]}, "instances[0]"),
        ({"instances": [1, 2, 3]}, "instances[0]"),
        ({"instances": [[1, 2, [3]]]}, "instances[0].high"),
        ({"inputs": {"low": [1, 2], "mid.x": [1], "high": [1, 2]}}, "inputs.mid.x"),
        ({"inputs": {}}, "low"),
        ({"inputs": "x"}, "inputs"),
        ({"inputs": ROW * 10_001}, "inputs"),
        ({"inputs": ROW, "instances": ROW}, "body"),
        ({}, "body"),
        ([], "body"),
        (b"", "body"),
        (b"{", "body"),
        (b"\xff\xfe", "body"),
        (b'{"inputs": "\xff"}', "body"),
        (b'{"inputs": [[1, 2, NaN]]}', "body"),
        (b'{"inputs": [[1, 2, 1e999]]}', "[...][0][2]"),
        (b'{"inputs": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "body"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_wrong_invocation_is_answered_with_the_field_that_is_wrong(client, body, field):
    """Bad input is the client's error: 400, one sentence, and never a trace of our code."""
    reply = posted(client, "/invocations", body)
    assert (reply.status_code, reply.json().get("field")) == (400, field), reply.text
    assert reply.json()["error"]
    assert "Traceback" not in reply.text
    assert ".py" not in reply.text


def test_readings_become_windows_with_an_activity_and_its_confidence(client):
    """The shape of the answer is a public contract."""
    reply = posted(client, "/predict", {"readings": readings(256)})
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert (answer["model"], answer["version"]) == ("activity", "7")
    assert [window["start"] for window in answer["windows"]] == [1700000000.0, 1700000002.56]
    assert {window["activity"] for window in answer["windows"]} == {"wlk"}
    assert all(0.5 < window["confidence"] <= 1 for window in answer["windows"])


def test_a_missing_field_is_called_missing(client):
    reply = posted(client, "/predict", {"readings": [{"device": "phone-07", "ts": 1.0}]})
    assert reply.json() == {"error": "is missing", "field": "readings[0].attitude.roll"}


def test_too_few_readings_are_told_how_many_it_takes(client):
    for few in ([], readings(127)):
        reply = posted(client, "/predict", {"readings": few})
        assert (reply.status_code, reply.json()["field"]) == (400, "readings")
        assert "128" in reply.json()["error"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"readings": readings(130, **{"attitude.roll": 9})}, "readings[129].attitude.roll"),
        ({"readings": readings(130, **{"rotationRate.x": "fast"})}, "readings[129].rotationRate.x"),
        ({"readings": readings(130, ts=None)}, "readings[129].ts"),
        ({"readings": readings(130, device="no/slashes")}, "readings[129].device"),
        ({"readings": readings(130, device="phone-08")}, "readings[129].device"),
        ({"readings": readings(130, act="fly")}, "readings[129].act"),
        ({"readings": [READING, {"device": "phone-07", "ts": 1.0}]}, "readings[1].attitude.roll"),
        ({"readings": [3]}, "readings[0]"),
        ({"readings": READING}, "readings"),
        ({}, "readings"),
        ([], "body"),
        (b'{"readings": [{"ts": NaN}]}', "body"),
        (b'{"readings": [{"ts": 1e999}]}', "readings[0].ts"),
        (b"not json", "body"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_wrong_reading_is_named_by_its_place(client, body, field):
    """Someone who sends 128 readings has to learn which one it was."""
    reply = posted(client, "/predict", body)
    assert (reply.status_code, reply.json()["field"]) == (400, field), reply.text
    assert reply.json()["error"]


def test_a_body_over_the_cap_is_refused_with_and_without_a_length(client):
    """Chunked transfer has no Content-Length, and must not be a way around the cap."""

    def chunks():
        for _ in range(MAX_BODY_BYTES // 1024 + 1):
            yield b" " * 1024

    for content in (b" " * (MAX_BODY_BYTES + 1), chunks()):
        reply = client.post("/predict", content=content, headers={"content-type": "application/json"})
        assert (reply.status_code, reply.json()["field"]) == (413, "body")
        assert str(MAX_BODY_BYTES) in reply.json()["error"]
    body = msgspec.json.encode({"inputs": ROW})
    fits = body + b" " * (MAX_BODY_BYTES - len(body))
    assert posted(client, "/invocations", fits).status_code == 200


def test_anything_but_json_is_told_what_to_send(client):
    """curl -d sends a form unless it is told otherwise."""
    reply = client.post("/predict", data={"readings": "1"})
    assert (reply.status_code, reply.json()["field"]) == (415, "content-type")
    assert "application/json" in reply.json()["error"]
    assert client.post("/invocations", content=msgspec.json.encode({"inputs": ROW})).status_code == 200


def test_a_path_or_method_that_is_not_there_is_answered_in_json_too(client):
    assert client.get("/nowhere").json() == {"error": "Not Found", "field": "path"}
    assert client.get("/predict").status_code == 405


def test_a_fault_of_ours_shows_nothing_of_itself(pipeline):
    """What broke is in the log; a stranger learns no path and no library."""

    def broken(readings, columns):
        raise RuntimeError("secret path /home/x")

    reply = posted(client_of(pipeline, broken), "/predict", {"readings": readings(128)})
    assert reply.status_code == 500
    assert reply.json() == {"error": "internal error, see the server's log", "field": "body"}


def test_a_pipeline_trained_on_a_frame_is_asked_with_its_names(pipeline, recwarn):
    """scikit-learn warns at every request otherwise, and the log fills up."""
    import pandas as pd

    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 3)), columns=list(COLUMNS))
    named = make_pipeline(StandardScaler(), LogisticRegression()).fit(frame, np.where(frame["low"] > 0, "wlk", "sit"))
    assert posted(client_of(named), "/invocations", {"inputs": ROW}).json() == {"predictions": ["wlk"]}
    assert not [warning for warning in recwarn if "feature names" in str(warning.message)]


def test_numbers_that_only_the_model_cannot_take_are_the_clients_error_too():
    """Finite as JSON, infinite as a forest's float32."""
    rows = np.eye(3)
    tree = make_pipeline(DecisionTreeClassifier()).fit(rows, ["wlk", "sit", "jog"])
    reply = posted(client_of(tree), "/invocations", {"inputs": [[1e300, 0, 0]]})
    assert (reply.status_code, reply.json()["field"]) == (400, "body")
    assert "float32" in reply.json()["error"]


def test_ping_answers_while_a_request_is_being_scored(pipeline):
    """A health check that waits for a slow request restarts a healthy server."""
    scoring, done = threading.Event(), threading.Event()

    def slow(readings, columns):
        scoring.set()
        assert done.wait(20)
        return np.zeros(1), np.ones((1, 3))

    with client_of(pipeline, slow) as client, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(posted, client, "/predict", {"readings": [READING]})
        assert scoring.wait(20)
        assert client.get("/ping").status_code == 200
        assert not answer.done()
        done.set()
        assert answer.result().status_code == 200


def test_the_documentation_page_shows_how_to_ask(client):
    """/docs is what a person opens first."""
    document = client.get("/openapi.json").json()
    assert client.get("/docs").status_code == 200
    example = document["paths"]["/invocations"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert posted(client, "/invocations", example).status_code == 200


def test_an_answer_has_one_thread_of_the_libraries_beneath(pipeline):
    """As many answers as cores are worked on at a time; helpers of each would wait for one another in loops."""
    seen = []

    class Watched:
        classes_ = pipeline.classes_

        def predict(self, rows):
            seen.append({each["num_threads"] for each in threadpool_info() if each["user_api"] == "openmp"})
            return pipeline.predict(rows)

    assert posted(client_of(Watched()), "/invocations", {"inputs": ROW}).status_code == 200
    assert seen == [{1}]
