"""Real processes: what happens when workers and servers die at the worst moments."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import msgspec
import numpy as np
import psutil
import pytest

from deploy import modelfiles, rollout
from deploy.process import ProcessTarget, State, free_port
from deploy.target import DeploymentSpec
from schemas.errors import Reject, Retry

ROOT = Path(__file__).parents[2]
# Answers /ping and /version with what it was started for; 0.2 s instead of the 2 s that scikit-learn takes.
SERVE = """
import http.server, json, sys
model, version, digest, port = sys.argv[1:]

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"model": model, "version": version, "digest": digest}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass

print("serving", flush=True)
http.server.HTTPServer.allow_reuse_address = False
http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


def command(spec, port):
    return [sys.executable, "-c", SERVE, spec.model, spec.version, spec.digest, str(port)]


@pytest.fixture
def target(tmp_path):
    target = ProcessTarget(tmp_path / "home", command, stop_seconds=5)
    yield target
    for deployment in target.list("m"):
        target.delete(deployment)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """A model as MLflow writes it and the retrain worker completes it."""
    import mlflow
    import pandas as pd
    from mlflow.models import infer_signature
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folder = tmp_path_factory.mktemp("models") / "model"
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(rng.normal(size=(60, 3)), columns=["a", "b.x", "c"])
    pipeline = make_pipeline(StandardScaler(), RandomForestClassifier(3)).fit(rows, rng.choice(["wlk", "sit"], 60))
    mlflow.sklearn.save_model(
        pipeline,
        folder,
        skops_trusted_types=list(modelfiles.ALLOWED),
        signature=infer_signature(rows, pipeline.predict(rows)),
        input_example=rows.head(2),
        pip_requirements=["scikit-learn"],
    )
    smoke = {
        "columns": list(rows),
        "inputs": rows[:30].to_numpy().tolist(),
        "expected": pipeline.predict(rows[:30]).tolist(),
        "probabilities": pipeline.predict_proba(rows[:30]).tolist(),
    }
    (folder / "smoke.json").write_text(json.dumps(smoke))
    return DeploymentSpec("m", "7", modelfiles.digest(folder), folder)


def pid_of(deployment):
    return int(deployment.handle.partition("@")[0])


def carrying(mark):
    """Pids of the live processes of that home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DRIFTLOOP_STACK") == str(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def test_a_folder_that_mlflow_wrote_passes_and_answers_as_mlflow_does(spec):
    """The loader is ours, the protocol is MLflow's."""
    import mlflow
    from fastapi.testclient import TestClient
    from mlflow.pyfunc import scoring_server

    from deploy.serving import create_app, served

    modelfiles.verify(spec.folder, spec.digest)
    ours = TestClient(create_app(served("m", "7", spec.digest, spec.folder), lambda *_: None))
    theirs = TestClient(scoring_server.init(mlflow.pyfunc.load_model(str(spec.folder))))
    cases = modelfiles.smoke_cases(spec.folder)
    records = [dict(zip(cases.columns, row, strict=True)) for row in cases.inputs]
    columns = {name: [row[name] for row in records] for name in reversed(cases.columns)}
    for body in (
        {"dataframe_split": {"columns": cases.columns, "data": cases.inputs}},
        {"dataframe_records": records},
        {"instances": records},
        {"inputs": columns},
        {"inputs": records[0]},
    ):
        answers = [each.post("/invocations", json=body) for each in (ours, theirs)]
        assert answers[0].status_code == answers[1].status_code == 200
        assert answers[0].json() == answers[1].json()
    for body in ({"dataframe_records": [{"a": 1.0}]}, {"inputs": "x"}, {}, {"inputs": records, "instances": records}):
        assert [each.post("/invocations", json=body).status_code for each in (ours, theirs)] == [400, 400]


def test_the_scoring_server_never_imports_mlflow():
    """It would double the start and the memory."""
    code = "import sys, skops.io, deploy.serving, uvicorn; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_server_outlives_the_worker_that_started_it(target, spec):
    """kill -9 of the worker's whole process group, as a supervisor does it."""
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from deploy.process import ProcessTarget
from deploy.target import DeploymentSpec
from test_process_target import command
spec = DeploymentSpec("m", "7", {spec.digest!r}, Path({str(spec.folder)!r}))
print(ProcessTarget(Path({str(target.home)!r}), command).create(spec).handle, flush=True)
os.killpg(0, signal.SIGKILL)
"""
    worker = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True, check=False
    )
    assert worker.returncode == -signal.SIGKILL, worker.stderr
    found = target.find("m", "7")
    assert found.handle == worker.stdout.splitlines()[-1]
    assert target.create(spec) == found
    assert rollout.is_itself(found)


def test_a_worker_that_dies_between_start_and_state_file_leaves_no_orphan(target, spec, monkeypatch):
    """The next one finds the process by what it carries, and keeps it."""

    class Died(BaseException):
        pass

    def die(state):
        raise Died

    monkeypatch.setattr(target, "_keep", die)
    with pytest.raises(Died):
        target.create(spec)
    while not carrying(target.home):  # the mark can be read a moment after the process is there
        time.sleep(0.01)
    [pid] = carrying(target.home)
    successor = ProcessTarget(target.home, command)
    found = successor.find("m", "7")
    assert pid_of(found) == pid
    assert successor.list("m") == (found,)
    rollout.wait_ready(successor, found, 20)
    assert successor.create(spec) == found
    successor.delete(found)
    assert carrying(target.home) == []


def test_a_recycled_pid_is_not_mistaken_for_the_server(target, spec):
    """After a restart of the machine the state file names a pid that is somebody else's."""
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        deployment = target.create(spec)
        state_file = target.home / "serving" / "m-v7.json"
        state = msgspec.json.decode(state_file.read_bytes(), type=State)
        target.delete(deployment)
        created = psutil.Process(stranger.pid).create_time()
        for create_time in (state.create_time, created):
            stale = msgspec.structs.replace(state, pid=stranger.pid, create_time=create_time)
            state_file.write_bytes(msgspec.json.encode(stale))
            assert target.find("m", "7") is None
            target.delete(deployment)
            assert stranger.poll() is None
        state_file.write_bytes(msgspec.json.encode(stale))
        assert pid_of(target.create(spec)) != stranger.pid
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_clock_that_was_set_does_not_lose_the_server(target, spec):
    """Start times move with the clock; the mark does not."""
    deployment = target.create(spec)
    successor = ProcessTarget(target.home, command)
    state_file = target.home / "serving" / "m-v7.json"
    state = msgspec.json.decode(state_file.read_bytes(), type=State)
    state_file.write_bytes(msgspec.json.encode(msgspec.structs.replace(state, create_time=state.create_time - 60)))
    assert successor.find("m", "7") == deployment
    assert successor.create(spec) == deployment
    earlier = dataclasses.replace(deployment, handle=f"{state.pid}@{state.create_time - 60}")
    assert isinstance(successor.ended(earlier), Retry)
    assert successor.ended(deployment) is None


def test_a_server_that_answers_as_another_model_is_replaced(target, spec):
    """Whatever runs there, it is not what was registered."""

    def wrong(spec, port):
        return [*command(spec, port)[:-2], "sha256:" + "0" * 64, str(port)]

    mistaken = ProcessTarget(target.home, wrong, starting_seconds=1)
    impostor = mistaken.create(spec)
    with pytest.raises(Reject, match="wrong-model"):
        rollout.wait_ready(mistaken, impostor, 20)
    replaced = target.create(spec)
    assert pid_of(replaced) != pid_of(impostor)
    rollout.wait_ready(target, replaced, 20)
    assert carrying(target.home) == [pid_of(replaced)]


def test_what_runs_is_not_stopped_for_files_that_are_refused(target, spec, tmp_path):
    """A tampered model must not even cause an outage."""
    deployment = target.create(spec)
    (tmp_path / "model").mkdir()
    with pytest.raises(Reject, match="digest-mismatch"):
        target.create(DeploymentSpec("m", "7", "sha256:" + "0" * 64, tmp_path / "model"))
    assert target.find("m", "7") == deployment
    assert rollout.is_itself(deployment)


def test_a_port_that_is_taken_meanwhile_costs_another_try(tmp_path, spec):
    """Between choosing a port and listening on it, anybody can take it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], free_port()])
        target = ProcessTarget(tmp_path, command, choose_port=lambda: next(ports), stop_seconds=5)
        deployment = target.create(spec)
        try:
            assert rollout.is_itself(deployment)
            assert len(carrying(target.home)) == 1
        finally:
            target.delete(deployment)


def test_a_server_that_crashes_says_why(tmp_path, spec):
    """The decision that nothing was deployed has to name the reason."""
    target = ProcessTarget(tmp_path, lambda spec, port: [sys.executable, "-c", "raise SystemExit('no such wheel')"])
    with pytest.raises(Reject, match="crashed: m-v7 ended with exit code 1; its last lines:\nno such wheel"):
        target.create(spec)
    assert target.find("m", "7") is None
    missing = ProcessTarget(tmp_path, lambda spec, port: ["/nonexistent"])
    with pytest.raises(Retry, match="nonexistent"):
        missing.create(spec)


def test_a_server_that_hangs_is_replaced(target, spec):
    """Alive, but silent for longer than any start takes."""
    hanging = target.create(spec)
    os.kill(pid_of(hanging), signal.SIGSTOP)
    patient = ProcessTarget(target.home, command, stop_seconds=1)
    assert patient.create(spec) == hanging, "it may just be starting"
    time.sleep(0.5)
    impatient = ProcessTarget(target.home, command, stop_seconds=1, starting_seconds=0.5)
    replaced = impatient.create(spec)
    assert pid_of(replaced) != pid_of(hanging)
    rollout.wait_ready(impatient, replaced, 20)
    assert carrying(target.home) == [pid_of(replaced)]


def test_a_server_that_ignores_sigterm_is_killed_and_its_files_go(tmp_path, spec):
    """The log stays: it is what one reads afterwards."""
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVE

    def command(spec, port):
        return [sys.executable, "-c", stubborn, spec.model, spec.version, spec.digest, str(port)]

    target = ProcessTarget(tmp_path, command, stop_seconds=0.5)
    deployment = target.create(spec)
    assert modelfiles.digest(target.home / "serving" / "m-v7") == spec.digest
    target.delete(deployment)
    assert carrying(target.home) == []
    left = {path.name for path in (target.home / "serving").iterdir() if not path.name.startswith(".")}
    assert left == set()
    assert "serving" in (target.home / "logs" / "serving-m-v7.log").read_text()


def test_the_server_has_its_mark_and_a_session_of_its_own(target, spec):
    """The stack's `down` and its search for orphans go by the mark."""
    pid = pid_of(target.create(spec))
    environment = psutil.Process(pid).environ()
    assert environment["DRIFTLOOP_SERVING"] == "m-v7"
    assert environment["DRIFTLOOP_STACK"] == str(target.home)
    assert os.getsid(pid) == pid != os.getsid(0)


def test_a_body_over_the_cap_is_answered_by_a_real_server_too(tmp_path, spec):
    """A reset connection instead of an answer tells a client nothing."""
    code = (
        "import sys; from pathlib import Path; from deploy.serving import create_app, listen, served\n"
        "listen(create_app(served('m', '7', sys.argv[1], Path(sys.argv[2])), None), '127.0.0.1', int(sys.argv[3]))"
    )

    def command(spec, port):
        return [sys.executable, "-c", code, spec.digest, str(spec.folder), str(port)]

    def endless():
        while True:
            yield b" " * 65536

    target = ProcessTarget(tmp_path, command, stop_seconds=5)
    os.environ["PYTHONPATH"] = str(ROOT)
    deployment = target.create(spec)
    try:
        rollout.wait_ready(target, deployment, 60)
        rollout.smoke(deployment.endpoint, modelfiles.smoke_cases(spec.folder))
        headers = {"content-type": "application/json"}
        for content in (b" " * 3_000_000, iter([b" " * 3_000_000])):
            reply = httpx.post(f"{deployment.endpoint}/predict", content=content, headers=headers)
            assert (reply.status_code, reply.json()["field"]) == (413, "body")
        try:
            reply = httpx.post(f"{deployment.endpoint}/predict", content=endless(), headers=headers, timeout=30)
        except (httpx.WriteError, httpx.ReadError):
            pass  # cut off while it was still sending
        else:
            assert reply.status_code == 413
        assert httpx.get(f"{deployment.endpoint}/ping").status_code == 200
    finally:
        del os.environ["PYTHONPATH"]
        target.delete(deployment)


def test_a_server_that_is_told_to_end_answers_what_it_was_asked_first(tmp_path, spec):
    """A version is taken away while a last slow request is under way; its client must not notice."""
    code = (
        "import dataclasses, sys, time\n"
        "from pathlib import Path\n"
        "from deploy.serving import create_app, listen, served\n"
        "sound = served('m', '7', sys.argv[1], Path(sys.argv[2]))\n"
        "class Slow:\n"
        "    classes_ = sound.pipeline.classes_\n"
        "    def predict(self, rows):\n"
        "        print('asked', flush=True)\n"
        "        time.sleep(2)\n"
        "        return sound.pipeline.predict(rows)\n"
        "model = dataclasses.replace(sound, pipeline=Slow())\n"
        "listen(create_app(model, None), '127.0.0.1', int(sys.argv[3]))"
    )
    port, log = free_port(), tmp_path / "log"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, spec.digest, str(spec.folder), str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: answers(port), log)
        cases = modelfiles.smoke_cases(spec.folder)
        with ThreadPoolExecutor(1) as pool:
            url, body = f"http://127.0.0.1:{port}/invocations", {"instances": cases.inputs[:1]}
            asked = pool.submit(lambda: httpx.post(url, json=body, timeout=30))
            wait_until(lambda: "asked" in log.read_text(), log)
            server.send_signal(signal.SIGTERM)
            assert asked.result().json() == {"predictions": cases.expected[:1]}
        assert server.wait(30) in (0, -signal.SIGTERM), log.read_text()
    finally:
        server.kill()


def answers(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ping").status_code == 200
    except httpx.TransportError:
        return False


def wait_until(ask, log):
    deadline = time.monotonic() + 60
    while not ask():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
