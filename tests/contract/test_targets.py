"""One suite for every place where a model can be put: whatever holds for a process must hold for a container."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from deploy import modelfiles, rollout
from deploy.router import Router
from deploy.target import Deployment, DeploymentSpec, Target
from schemas.errors import Reject, Retry
from tests import engine as engines
from tests.places import PLACES, ROOT, running, write_model

pytestmark = pytest.mark.timeout(900)  # the first time, the engine's images have to be made


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    """Two versions of one model."""
    folder = tmp_path_factory.mktemp("models")
    folders = {version: write_model(folder / version, int(version)) for version in ("7", "8")}
    return {version: DeploymentSpec("m", version, modelfiles.digest(path), path) for version, path in folders.items()}


@pytest.fixture(scope="module")
def shared_engine(request, needs):
    """One engine for the module: starting it takes a second, and the first time its images take minutes."""
    needs(not engines.lacking(), engines.lacking())
    with engines.engine() as engine:
        yield engine


@pytest.fixture(params=PLACES)
def place(request, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    if request.param != "process":
        request.getfixturevalue("shared_engine")
    place = PLACES[request.param](tmp_path / "home")
    yield place
    for deployment in place.target().list("m"):
        place.target().delete(deployment)
    place.leave()


def started(target: Target, spec: DeploymentSpec) -> Deployment:
    deployment = target.create(spec)
    rollout.wait_ready(target, deployment, 60)
    return deployment


def test_a_version_is_created_found_tried_adopted_and_deleted(place, specs):
    """The life of a deployment, with a worker that is replaced in the middle of it."""
    target, spec = place.target(), specs["7"]
    assert target.find("m", "7") is None
    assert target.list("m") == ()
    first = started(target, spec)
    assert (first.target, first.label, first.digest) == (target.name, "m-v7", spec.digest)
    smoke = rollout.smoke(first.endpoint, modelfiles.smoke_cases(spec.folder))
    assert smoke.requests >= 20
    assert 0 < smoke.p50_ms <= smoke.p99_ms

    successor = place.target()
    assert successor.create(spec) == target.create(spec) == first
    assert successor.find("m", "7") == first
    assert successor.list("m") == (first,)
    assert successor.list("other") == ()
    assert successor.ended(first) is None

    successor.delete(first)
    assert target.find("m", "7") is None
    assert target.list("m") == ()
    assert isinstance(target.ended(first), Retry)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{first.endpoint}/ping")
    target.delete(first)


def test_a_dead_version_is_replaced(place, specs):
    """A machine that was restarted, a process that ran out of memory."""
    target, spec = place.target(), specs["7"]
    dead = started(target, spec)
    place.kill(dead)
    assert target.find("m", "7") is None
    ended = target.ended(dead)
    assert isinstance(ended, Retry), "killed from outside: the version itself may be fine"
    with pytest.raises(Retry, match="m-v7"):
        rollout.wait_ready(target, dead, 60)
    alive = started(target, spec)
    assert (alive.handle, alive.endpoint) != (dead.handle, dead.endpoint)
    assert target.list("m") == (alive,)


@pytest.mark.parametrize("place", ["docker"], indirect=True)
def test_a_container_that_needs_more_memory_than_it_may_have_is_the_version_s_fault(place, specs):
    """Trying again would end the same way; the machine must not go down with it."""
    target = place.target(memory_mb=48)
    deployment = target.create(specs["7"])
    with pytest.raises(Reject, match=r"crashed: .* 48 MB"):
        rollout.wait_ready(target, deployment, 60)
    assert target.find("m", "7") is None
    assert target.list("m") == (deployment,), "what has ended still has to be taken away"


@pytest.mark.parametrize("place", ["docker"], indirect=True)
def test_a_container_has_no_privileges_and_limits_on_everything(place, specs):
    """A model is foreign content: what it could do has to be little."""
    deployment = started(place.target(), specs["7"])
    container = place.engine.containers.get(deployment.handle)
    host = container.attrs["HostConfig"]
    assert (host["ReadonlyRootfs"], host["CapDrop"], host["Privileged"]) == (True, ["ALL"], False)
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Memory"] == host["MemorySwap"] == 512 * 2**20
    assert host["PidsLimit"] > 0
    assert host["NanoCpus"] > 0
    assert host["PortBindings"]["8080/tcp"][0]["HostIp"] == "127.0.0.1"
    code, _ = container.exec_run(["sh", "-c", "touch /opt/model/x || touch /opt/driftloop/x"])
    assert code != 0
    began = time.monotonic()
    container.stop(timeout=20)
    container.reload()
    assert container.attrs["State"]["ExitCode"] == 0, f"it had to be killed after {time.monotonic() - began:.0f} s"


def test_files_that_are_not_the_registered_ones_never_run(place, specs, tmp_path):
    """The digest comes from the event, the files from a store that others can write to."""
    target, spec = place.target(), specs["7"]
    wrong = DeploymentSpec("m", "7", specs["8"].digest, spec.folder)
    with pytest.raises(Reject, match="digest-mismatch"):
        target.create(wrong)
    pickled = shutil.copytree(spec.folder, tmp_path / "pickled")
    (pickled / "MLmodel").write_text((pickled / "MLmodel").read_text().replace("skops\n", "pickle\n"))
    with pytest.raises(Reject, match="unsafe-model"):
        target.create(DeploymentSpec("m", "7", modelfiles.digest(pickled), pickled))
    assert target.find("m", "7") is None


def test_a_version_with_another_digest_is_replaced(place, specs):
    """A registry that began anew counts from 1 again; what still runs is not what was registered."""
    target = place.target()
    before = started(target, DeploymentSpec("m", "7", specs["8"].digest, specs["8"].folder))
    with pytest.raises(Reject, match="smoke"):
        rollout.smoke(before.endpoint, modelfiles.smoke_cases(specs["7"].folder))
    after = started(target, specs["7"])
    assert after.digest == specs["7"].digest
    assert target.list("m") == (after,)
    rollout.smoke(after.endpoint, modelfiles.smoke_cases(specs["7"].folder))


def test_a_swap_under_load_costs_no_request(place, specs, tmp_path):
    """Both versions run until requests have moved; then the old one goes."""
    target = place.target()
    old = started(target, specs["7"])
    cases = modelfiles.smoke_cases(specs["7"].folder)
    body = {"dataframe_split": {"columns": cases.columns, "data": cases.inputs[:1]}}
    swapped, enough = threading.Event(), 60

    with running(Router(tmp_path / "route.json")) as (router, address), ThreadPoolExecutor(4) as pool:
        router.switch(old.endpoint, old.version)

        def ask(_):
            answers = []
            with httpx.Client(base_url=address, timeout=30) as client:
                after = 0
                while after < enough:
                    after += swapped.is_set()
                    reply = client.post("/invocations", json=body)
                    answers.append((reply.status_code, reply.headers.get("x-driftloop-version")))
            return answers

        asked = [pool.submit(ask, number) for number in range(4)]
        try:
            new = started(target, specs["8"])
            router.switch(new.endpoint, new.version)
            target.delete(old)
        finally:
            swapped.set()
        answers = [answer for each in asked for answer in each.result()]
        assert {status for status, _ in answers} == {200}
        assert {version for _, version in answers} == {"7", "8"}
        assert len(answers) > 4 * enough
        print(f"{len(answers)} requests across the swap")


@pytest.mark.parametrize(
    "changes",
    [{"model": "../m"}, {"model": "M"}, {"version": "7/.."}, {"version": ""}, {"version": "7-v8"}, {"digest": "00"}],
    ids=str,
)
def test_a_name_that_could_mean_a_path_is_refused(specs, changes):
    """They come from an event and become parts of paths, marks and image tags."""
    good = {"model": "m", "version": "7", "digest": specs["7"].digest, "folder": specs["7"].folder}
    with pytest.raises(Reject, match=next(iter(changes))):
        DeploymentSpec(**good | changes)


# -- readiness and smoke test, against a made-up endpoint ------------------------------------------------------------

DEPLOYED = Deployment("made-up", "m", "7", "sha256:00", "http://127.0.0.1:9", "handle")
CASES = modelfiles.SmokeCases(["a"], [[0.0], [1.0], [2.0]], ["sit", "wlk", "jog"], [[1, 0], [0, 1], [0.5, 0.5]])


class Running:
    def ended(self, deployment):
        return None


def answering(*replies):
    """A transport that gives these replies in turn, the last one for ever."""
    left = list(replies)

    def reply(request):
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer

    return httpx.MockTransport(reply)


def wait(transport, target=None, seconds=5.0):
    """The made-up seconds that were waited."""
    now = [0.0]

    def sleep(pause):
        now[0] += pause

    rollout.wait_ready(target or Running(), DEPLOYED, seconds, clock=lambda: now[0], sleep=sleep, transport=transport)
    return now[0]


ITSELF = httpx.Response(200, json={"model": "m", "version": "7", "digest": "sha256:00"})


def test_a_version_is_ready_when_it_answers_as_itself():
    down = httpx.ConnectError("refused")
    assert wait(answering(down, down, httpx.Response(503), httpx.Response(200), ITSELF)) > 0


def test_something_else_at_its_address_is_refused():
    """A port that another program took would otherwise pass the health check."""
    other = httpx.Response(200, json={"model": "m", "version": "7", "digest": "sha256:01"})
    for reply in (other, httpx.Response(200, text="hello")):
        with pytest.raises(Reject, match="wrong-model"):
            wait(answering(httpx.Response(200), reply))


def test_a_version_that_stays_silent_is_tried_again_later():
    with pytest.raises(Retry, match=r"5 s .*refused"):
        wait(answering(httpx.ConnectError("refused")))


def test_a_version_that_ended_is_not_waited_for():
    class Ended:
        def ended(self, deployment):
            return Reject("crashed", "its last line")

    with pytest.raises(Reject, match="its last line"):
        wait(answering(httpx.ConnectError("refused")), Ended())


def right(request):
    rows = json.loads(request.content)["dataframe_split"]["data"]
    return httpx.Response(200, json={"predictions": [CASES.expected[int(row[0])] for row in rows]})


def changed(**changes):
    def reply(request):
        return httpx.Response(200, json=right(request).json() | changes)

    return reply


def with_probabilities(shift):
    def reply(request):
        rows = json.loads(request.content)["dataframe_split"]["data"]
        found = [[value + shift for value in CASES.probabilities[int(row[0])]] for row in rows]
        return changed(probabilities=found)(request)

    return reply


def test_the_smoke_test_asks_for_every_stored_input():
    """Twenty requests at least, however few or many inputs there are."""
    for copies in (1, 50):
        asked = []

        def counting(request, asked=asked):
            asked.extend(row[0] for row in json.loads(request.content)["dataframe_split"]["data"])
            return right(request)

        fields = (CASES.inputs, CASES.expected, CASES.probabilities)
        cases = modelfiles.SmokeCases(CASES.columns, *(field * copies for field in fields))
        smoke = rollout.smoke(DEPLOYED.endpoint, cases, transport=answering(counting))
        assert smoke.requests >= 20
        assert len(asked) >= len(cases.inputs)
        assert set(asked) == {0.0, 1.0, 2.0}


@pytest.mark.parametrize(
    "reply",
    [
        changed(predictions=["wlk"]),
        changed(predictions=[]),
        changed(predictions="sit"),
        changed(probabilities=[[1]]),
        changed(probabilities="high"),
        with_probabilities(1e-3),
        httpx.Response(200, json=["sit"]),
        httpx.Response(200, text="sit"),
        httpx.Response(400, json={"error": "no"}),
        httpx.Response(500),
    ],
)
def test_an_endpoint_that_answers_otherwise_than_the_model_did_is_refused(reply):
    with pytest.raises(Reject, match="smoke"):
        rollout.smoke(DEPLOYED.endpoint, CASES, transport=answering(reply))


def test_a_single_wrong_answer_among_right_ones_is_enough():
    with pytest.raises(Reject, match=r"input 2 was 'jog'.*'sit'"):
        rollout.smoke(DEPLOYED.endpoint, CASES, transport=answering(right, right, changed(predictions=["sit"]), right))


def test_probabilities_may_differ_by_rounding_only():
    assert rollout.smoke(DEPLOYED.endpoint, CASES, transport=answering(with_probabilities(1e-12))).requests >= 20


@pytest.mark.parametrize("reply", [httpx.ReadError("reset"), httpx.Response(502), httpx.Response(503)], ids=repr)
def test_an_endpoint_that_cannot_be_reached_says_nothing_about_the_model(reply):
    with pytest.raises(Retry):
        rollout.smoke(DEPLOYED.endpoint, CASES, transport=answering(right, reply))
