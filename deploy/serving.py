"""The scoring server of one model version: the same app in a process, a container or on ACI.

It speaks MLflow's scoring protocol on window features (`/invocations`) and takes raw readings (`/predict`), but never
imports mlflow, which would double its start and its memory and bring a loader that trusts the model's own word.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

import msgspec
import numpy as np
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from threadpoolctl import threadpool_limits

from deploy import modelfiles
from schemas.activity import SAMPLE_RATE_HZ, Reading
from schemas.errors import Reject, first_line

MAX_BODY_BYTES: Final = 1024 * 1024
MAX_ROWS: Final = 10_000
BODY_SECONDS: Final = 30.0
WINDOW_READINGS: Final = 128
# A client that is still sending would see a reset connection instead of the answer, so a little more is read and
# thrown away before a body that is too large is answered.
_DISCARD_BYTES: Final = 4 * MAX_BODY_BYTES

Floats = NDArray[np.float64]


class Featurise(Protocol):
    """How readings become the rows that a model was trained on; whoever starts the server hands it in."""

    def __call__(self, readings: list[Reading], columns: tuple[str, ...]) -> tuple[Floats, Floats]:
        """starts: (n,) event time of each window's first reading; features: (n, len(columns)); n may be 0.

        Raises Reject, its reason beginning with the field: `readings[17].rotationRate.x: …`.
        """


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version, ready to answer. columns: the k feature names in the order of the pipeline's inputs."""

    name: str
    version: str
    digest: str
    columns: tuple[str, ...]
    pipeline: Any

    def labels(self, features: Floats) -> list[str]:
        """n labels for features (n, k). Raises Reject: `schema` if the pipeline refuses the values."""
        return [str(label) for label in self._asked(self.pipeline.predict, features)]

    def judged(self, features: Floats) -> list[tuple[str, float]]:
        """n labels with their probability, for features (n, k). Raises as `labels` does."""
        probabilities = self._asked(self.pipeline.predict_proba, features)
        best = probabilities.argmax(1)
        labels = self.pipeline.classes_[best]
        return [(str(label), float(row[at])) for label, row, at in zip(labels, probabilities, best, strict=True)]

    def _asked(self, question: Callable[[Any], Any], features: Floats) -> Any:
        if not len(features):
            return np.empty((0, len(self.pipeline.classes_)))
        rows: Any = features
        if hasattr(self.pipeline, "feature_names_in_"):  # trained on a frame, it warns about bare arrays
            import pandas as pd

            rows = pd.DataFrame(features, columns=list(self.columns))
        try:
            with np.errstate(all="ignore"):
                return question(rows)
        except ValueError as error:  # finite for us, yet not after scaling or as float32
            _refuse("body", f"the model cannot score these values: {first_line(error)}")


def served(name: str, version: str, digest: str, folder: Path) -> ServedModel:
    """The model in a folder, verified against its digest, then loaded. Raises Reject as `modelfiles.verify` does."""
    modelfiles.verify(folder, digest)
    pipeline, columns = modelfiles.load(folder), tuple(modelfiles.smoke_cases(folder).columns)
    trained_on = tuple(getattr(pipeline, "feature_names_in_", columns))
    if len(columns) != pipeline.n_features_in_ or columns != trained_on:
        raise Reject("unsafe-model", f"the pipeline was trained on other columns than {modelfiles.SMOKE} names")
    return ServedModel(name, version, digest, columns, pipeline)


def create_app(model: ServedModel, featurise: Featurise) -> FastAPI:
    """The scoring server's ASGI app. Whatever is wrong with a request is answered with {"error", "field"}."""
    app = FastAPI(
        title=f"{model.name} {model.version}",
        version=model.version,
        description="A Driftloop model: `/predict` takes raw readings, `/invocations` MLflow's scoring protocol.",
    )
    # Scoring is CPU work: more threads than cores would only delay one another, and /ping. So none has helpers either.
    pool = ThreadPoolExecutor(os.cpu_count() or 1, "score", partial(threadpool_limits, 1))
    identity = {"model": model.name, "version": model.version, "digest": model.digest}

    async def scored(request: Request, answer: Callable[[bytes], Any]) -> Response:
        body = await _body(request)
        try:
            reply = await asyncio.get_running_loop().run_in_executor(pool, answer, body)
        except Reject as reject:
            field, named, error = reject.reason.partition(": ")
            return _problem(400, error, field) if named else _problem(400, reject.reason)
        return _json(reply)

    @app.get("/ping")
    async def ping() -> Response:
        """200 as soon as the model can answer."""
        return _json({"status": "ready"})

    @app.get("/version")
    async def version() -> Response:
        """Which model this is, down to the digest of its files."""
        return _json(identity)

    @app.post("/invocations", openapi_extra=_takes(_invocation_example(model.columns)))
    async def invocations(request: Request) -> Response:
        """Labels for rows of window features, in MLflow's scoring protocol."""
        return await scored(request, partial(_invoked, model))

    @app.post("/predict", openapi_extra=_takes({"readings": [_READING_EXAMPLE]}))
    async def predict(request: Request) -> Response:
        """The activity in each window (2.56 s, every 1.28 s) of one device's readings, oldest first."""
        return await scored(request, partial(_predicted, model, featurise))

    @app.exception_handler(_Unread)
    async def unread(_: Request, error: _Unread) -> Response:
        return _problem(error.status, str(error), error.field, {"connection": "close"})

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        return _problem(error.status_code, error.detail, "path", error.headers)

    @app.exception_handler(Exception)  # Starlette raises it again afterwards, so that the server logs it
    async def failed(_: Request, __: Exception) -> Response:
        return _problem(500, "internal error, see the server's log")

    return app


def listen(app: FastAPI, host: str, port: int) -> None:
    """Serves the app until SIGTERM or SIGINT; requests under way are finished first, for up to 30 s."""
    import uvicorn

    uvicorn.run(app, host=host, port=port, access_log=False, server_header=False, timeout_graceful_shutdown=30)


# -- requests -------------------------------------------------------------------------------------------------------


def _refuse(field: str, error: str) -> NoReturn:
    raise Reject("schema", f"{field}: {error}")


class _Unread(Exception):
    """The body was not read to its end, so the connection is of no more use."""

    def __init__(self, status: int, field: str, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.field = field


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def _problem(status: int, error: str, field: str = "body", headers: Mapping[str, str] | None = None) -> Response:
    return _json({"error": error, "field": field}, status, headers)


async def _body(request: Request) -> bytes:
    """The whole body. Raises _Unread: 413 past MAX_BODY_BYTES, 415 for anything but JSON, 408 if it crawls."""
    kind = request.headers.get("content-type", "application/json")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise _Unread(415, "content-type", f"send application/json, not {kind}")
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= MAX_BODY_BYTES:
                    body += part
                elif size > _DISCARD_BYTES:
                    break
    except TimeoutError:
        raise _Unread(408, "body", f"it did not arrive within {BODY_SECONDS:.0f} s") from None
    except ClientDisconnect:
        raise _Unread(400, "body", "the client went away before its end") from None
    if size > MAX_BODY_BYTES:
        raise _Unread(413, "body", f"it may have {MAX_BODY_BYTES} bytes")
    return bytes(body)


def _decoded(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        field = path.rstrip("`").lstrip(".")
        if problem.startswith("Object missing required field `"):
            field = f"{field}.{problem.split('`')[1]}".lstrip(".")
            problem = "is missing"
        _refuse(field or "body", problem)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _refuse("body", f"not JSON: {error}")


# -- /predict -------------------------------------------------------------------------------------------------------


class _Readings(msgspec.Struct):
    readings: list[Reading]


def _predicted(model: ServedModel, featurise: Featurise, body: bytes) -> dict[str, Any]:
    readings: list[Reading] = _decoded(body, _Readings).readings
    if len(readings) > MAX_ROWS:
        _refuse("readings", f"{len(readings)} readings; at most {MAX_ROWS} are taken at once")
    for at, reading in enumerate(readings):
        if reading.device != readings[0].device:
            _refuse(f"readings[{at}].device", f"is {reading.device!r}; a request is about one device")
    starts, features = featurise(readings, model.columns) if readings else (np.empty(0), np.empty(0))
    if not len(starts):
        _refuse(
            "readings",
            f"{len(readings)} readings make no window; {WINDOW_READINGS} consecutive ones at {SAMPLE_RATE_HZ:.0f} Hz"
            " are needed",
        )
    windows = [
        {"start": start, "activity": activity, "confidence": confidence}
        for start, (activity, confidence) in zip(starts.tolist(), model.judged(features), strict=True)
    ]
    return {"model": model.name, "version": model.version, "windows": windows}


# -- /invocations ---------------------------------------------------------------------------------------------------

_FORMS: Final = ("dataframe_split", "dataframe_records", "instances", "inputs")


def _invoked(model: ServedModel, body: bytes) -> dict[str, list[str]]:
    """MLflow 3.17's answer, on four of its forms; stricter: a column that the model does not know is refused too."""
    request: dict[str, Any] = _decoded(body, dict[str, Any])
    forms = [name for name in _FORMS if name in request]
    if len(forms) != 1:
        _refuse("body", f"exactly one of {', '.join(_FORMS)} is needed")
    form, content = forms[0], request[forms[0]]
    if form == "dataframe_split":
        names, rows = _split(content)
    elif isinstance(content, dict) and form != "dataframe_records":
        names, rows = _columnwise(form, content)
    else:
        names, rows = _rowwise(form, content, model.columns)
    if len(rows) > MAX_ROWS:
        _refuse(form, f"{len(rows)} rows; at most {MAX_ROWS} are taken at once")
    place = {name: at for at, name in enumerate(names)}
    for name in model.columns:
        if name not in place:
            _refuse(name, "this column is missing")
    for name in names:
        if name not in model.columns:
            _refuse(str(name), "the model has no such column")
    if len(place) != len(names):
        _refuse(form, "a column is named twice")
    features = _numbers(form, names, rows)[:, [place[name] for name in model.columns]]
    return {"predictions": model.labels(features)}


def _split(content: Any) -> tuple[list[str], list[list[Any]]]:
    form = "dataframe_split"
    if not isinstance(content, dict) or not {"columns", "data"} <= set(content) <= {"columns", "data", "index"}:
        _refuse(form, "an object with columns and data (and index, if you like) is needed")
    columns, data = content["columns"], content["data"]
    if not isinstance(columns, list) or not all(isinstance(name, str) for name in columns):
        _refuse(f"{form}.columns", "a list of names is needed")
    if not isinstance(data, list):
        _refuse(f"{form}.data", "a list of rows is needed")
    _check_widths(f"{form}.data", data, len(columns))
    return columns, data


def _columnwise(form: str, content: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """{"a": [1, 2], "b": [3, 4]}, or one row of numbers."""
    columns = {name: value if isinstance(value, list) else [value] for name, value in content.items()}
    first = len(next(iter(columns.values()), []))
    for name, values in columns.items():
        if len(values) != first:
            _refuse(f"{form}.{name}", f"{len(values)} values where the first column has {first}")
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _rowwise(form: str, content: Any, wanted: tuple[str, ...]) -> tuple[list[str], list[list[Any]]]:
    """A list of objects by column name; `instances` and `inputs` also lists of values in the model's order."""
    if not isinstance(content, list):
        _refuse(form, "a list of rows is needed")
    if form != "dataframe_records" and content and isinstance(content[0], list):
        _check_widths(form, content, len(wanted))
        return list(wanted), content
    names = list(content[0]) if content and isinstance(content[0], dict) else list(wanted)
    for at, row in enumerate(content):
        if not isinstance(row, dict):
            _refuse(f"{form}[{at}]", "an object by column name is needed")
        if differing := row.keys() ^ set(names):
            name = min(differing)
            _refuse(f"{form}[{at}].{name}", "is missing" if name in names else "is not in the first row")
    return names, [[row[name] for name in names] for row in content]


def _check_widths(field: str, rows: list[Any], width: int) -> None:
    for at, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != width:
            _refuse(f"{field}[{at}]", f"a list of {width} numbers is needed")


def _numbers(form: str, names: list[str], rows: list[list[Any]]) -> Floats:
    """(n, len(names)) float64. Raises Reject that names the first value that is no finite number."""
    if {type(value) for value in chain.from_iterable(rows)} <= {float, int}:
        try:
            return np.array(rows, np.float64).reshape(len(rows), len(names))
        except OverflowError:
            pass
    for at, row in enumerate(rows):
        for name, value in zip(names, row, strict=True):
            if type(value) not in (float, int) or abs(value) > sys.float_info.max:
                _refuse(f"{form}[{at}].{name}", "is not a finite number")
    raise AssertionError("one of the values was refused above")


# -- the documentation page -----------------------------------------------------------------------------------------

_READING_EXAMPLE: Final = {
    "device": "phone-07",
    "ts": 1700000000.02,
    "attitude.roll": 1.528,
    "attitude.pitch": -0.733,
    "attitude.yaw": 0.696,
    "userAcceleration.x": 0.294,
    "userAcceleration.y": -0.184,
    "userAcceleration.z": 0.377,
}


def _invocation_example(columns: tuple[str, ...]) -> dict[str, Any]:
    return {"dataframe_split": {"columns": list(columns), "data": [[0.0] * len(columns)]}}


def _takes(example: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI's request body: JSON, as in the example."""
    return {"requestBody": {"required": True, "content": {"application/json": {"example": example}}}}
