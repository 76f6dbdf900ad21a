"""What has to hold before requests are switched to a version, on every target: it answers, as itself, and right."""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any, Final, NoReturn

import httpx
import numpy as np

from deploy.modelfiles import SmokeCases
from deploy.target import Deployment, Target
from schemas.errors import Reject, Retry
from schemas.events import Smoke

SMOKE_REQUESTS: Final = 20
# A probability may lie so far from the stored one: another processor rounds differently, another model differs more.
_PROBABILITY_TOLERANCE: Final = 1e-6
_PING_SECONDS: Final = 2.0
_REQUEST_SECONDS: Final = 10.0


def wait_ready(
    target: Target,
    deployment: Deployment,
    seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    transport: httpx.BaseTransport | None = None,
) -> None:
    """Returns when /ping answers 200 and /version names this model, version and digest.

    Raises what `target.ended` gives (Reject or Retry, with the last log lines) if it no longer runs; Reject
    `wrong-model` if something else answers at its address; Retry if it is still silent after so many seconds.
    """
    deadline, pause, silence = clock() + seconds, 0.05, "no answer yet"
    with _client(deployment.endpoint, _PING_SECONDS, transport) as client:
        while True:
            try:
                reply = client.get("/ping")
                silence = f"/ping answers {reply.status_code}"
                if reply.status_code == 200:
                    _check_identity(deployment, client.get("/version"))
                    return
            except httpx.TransportError as error:
                silence = f"{type(error).__name__}: {error}"
            if ended := target.ended(deployment):
                raise ended
            if clock() + pause > deadline:
                raise Retry(
                    f"{deployment.label} is not ready after {seconds:.0f} s at {deployment.endpoint}: {silence}"
                )
            sleep(pause)
            pause = min(pause * 1.5, 1.0)


def is_itself(deployment: Deployment, *, transport: httpx.BaseTransport | None = None) -> bool | None:
    """Whether this model, version and digest answers at the endpoint; None if nothing does."""
    try:
        with _client(deployment.endpoint, _PING_SECONDS, transport) as client:
            _check_identity(deployment, client.get("/version"))
    except httpx.TransportError:
        return None
    except Reject:
        return False
    return True


def is_sound(deployment: Deployment, since: float, starting_seconds: float) -> bool:
    """Whether it answers as itself, or runs since so lately (seconds since the epoch) that it need not answer yet."""
    answer = is_itself(deployment)
    return time.time() - since < starting_seconds if answer is None else answer


def smoke(
    endpoint: str,
    cases: SmokeCases,
    *,
    requests: int = SMOKE_REQUESTS,
    seconds: float = _REQUEST_SECONDS,
    transport: httpx.BaseTransport | None = None,
) -> Smoke:
    """What so many requests took, which together asked for every stored input.

    Raises Reject: `smoke` if a label differs, or a probability does where the endpoint gives them, or a request is
    refused, `slow` if one takes more than `seconds`; Retry if the endpoint cannot be reached or says itself that it is
    not available (502 to 504).
    """
    took: list[float] = []
    with _client(endpoint, seconds, transport) as client:
        for rows in _batches(len(cases.inputs), requests):
            body = {"dataframe_split": {"columns": cases.columns, "data": [cases.inputs[row] for row in rows]}}
            began = time.perf_counter()
            try:
                reply = client.post("/invocations", json=body)
            except httpx.ReadTimeout as error:
                raise Reject("slow", f"{endpoint} did not answer a request within {seconds:g} s") from error
            except httpx.TransportError as error:
                raise Retry(f"smoke test of {endpoint}: {type(error).__name__}: {error}") from error
            took.append((time.perf_counter() - began) * 1000)
            _compare(cases, rows, _answer(reply))
    return Smoke(
        requests=len(took),
        p50_ms=round(float(np.percentile(took, 50)), 3),
        p99_ms=round(float(np.percentile(took, 99)), 3),
    )


def _client(endpoint: str, seconds: float, transport: httpx.BaseTransport | None) -> httpx.Client:
    """A proxy from the environment is for the outside world, not for this machine."""
    url = httpx.URL(endpoint)
    try:
        local = ipaddress.ip_address(url.host).is_loopback
    except ValueError:
        local = url.host == "localhost"
    encrypted = url.scheme == "https"  # loading certificates takes longer than a request
    return httpx.Client(base_url=endpoint, timeout=seconds, transport=transport, trust_env=not local, verify=encrypted)


def _check_identity(deployment: Deployment, reply: httpx.Response) -> None:
    wanted = {"model": deployment.model, "version": deployment.version, "digest": deployment.digest}
    try:
        found = reply.json()
    except ValueError:
        found = reply.text[:200]
    if found != wanted:
        raise Reject("wrong-model", f"{deployment.endpoint} should serve {wanted}, its /version says {found}")


def _batches(rows: int, requests: int) -> Iterator[list[int]]:
    """Row numbers for each request: every row at least once, in requests of equal size."""
    size = math.ceil(rows / requests)
    numbers = cycle(range(rows))
    for _ in range(requests):
        yield list(islice(numbers, size))


def _answer(reply: httpx.Response) -> dict[str, Any]:
    if reply.status_code in (502, 503, 504):
        raise Retry(f"smoke test of {reply.url}: {reply.status_code} {reply.text[:200]}")
    if reply.status_code != 200:
        _fail(f"{reply.url} answers {reply.status_code} {reply.text[:200]}")
    try:
        answer = reply.json()
    except ValueError:
        _fail(f"{reply.url} answers something that is not JSON: {reply.text[:200]}")
    if not isinstance(answer, dict):
        _fail(f"{reply.url} answers {reply.text[:200]}")
    return answer


def _compare(cases: SmokeCases, rows: list[int], answer: dict[str, Any]) -> None:
    expected = [cases.expected[row] for row in rows]
    labels = answer.get("predictions")
    if not isinstance(labels, list) or len(labels) != len(expected):
        _fail(f"{len(expected)} labels were asked for, the answer is {str(answer)[:200]}")
    for row, label, wanted in zip(rows, labels, expected, strict=True):
        if label != wanted:
            _fail(f"input {row} was {wanted!r} in training, the endpoint says {label!r}")
    if "probabilities" in answer:
        wanted_probabilities = [cases.probabilities[row] for row in rows]
        if not _close(answer["probabilities"], wanted_probabilities):
            _fail(f"inputs {rows[0]} to {rows[-1]} have other probabilities than in training")


def _close(found: Any, wanted: list[list[float]]) -> bool:
    try:
        return bool(np.allclose(np.array(found, np.float64), np.array(wanted), rtol=0, atol=_PROBABILITY_TOLERANCE))
    except (ValueError, TypeError):
        return False


def _fail(reason: str) -> NoReturn:
    raise Reject("smoke", reason)
