"""The whole loop as a stranger runs it: `driftloop demo`, on a real Kafka and a real MLflow server."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deploy.local import orphans
from schemas.generate import ROOT
from tests.e2e.screenshots import CHROMIUM, VIEWS, launch, settled

MOTIONSENSE = Path(
    os.environ.get("DRIFTLOOP_MOTIONSENSE", Path(__file__).parents[3] / "shared" / "data" / "motionsense")
)
PICTURES = ROOT / ".ci" / "artifacts" / "stack"
DRIFTLOOP = [sys.executable, "-m", "workers.cli"]

pytestmark = pytest.mark.timeout(600)


def environment(home):
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("DRIFTLOOP_", "MLFLOW_"))}
    return ours | {"DRIFTLOOP_HOME": str(home)}


def demo(home, *arguments):
    return subprocess.Popen(
        [*DRIFTLOOP, "demo", "--json", *arguments],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    """The report and what was said on the way."""
    out, err = process.communicate(timeout=500)
    print(err)
    assert process.returncode == 0, f"{err}\n{out}"
    return json.loads(out)


def events(home, topic):
    said = subprocess.run(
        [*DRIFTLOOP, "events", topic, "--json"], env=environment(home), capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in said.stdout.splitlines()]


@pytest.fixture
def home(tmp_path):
    """A home whose stack is taken down whatever happens."""
    yield tmp_path
    subprocess.run([*DRIFTLOOP, "down"], env=environment(tmp_path / "demo"), capture_output=True, check=False)
    assert orphans.marked((tmp_path / "demo").resolve()) == []


def assert_closed(report):
    accuracy = report["accuracy"]
    assert report["closed"]
    assert accuracy["during"] < accuracy["before"] - 0.05, "the drift has to hurt, or nothing was shown"
    assert accuracy["after"] >= accuracy["before"] - 0.05
    assert set(report["chain"]) == {"drift", "run", "model-registered", "deployed"}


def test_the_loop_closes_on_recordings_of_real_people_and_leaves_nothing_behind(home):
    """What a stranger runs, on real people where their recordings are at hand: synthetic ones are easier.

    Without the recordings it is the synthetic people's turn; they have the test below to themselves in any case.
    """
    real = ["--data", str(MOTIONSENSE / "A_DeviceMotion_data.zip")] if MOTIONSENSE.exists() else []
    assert_closed(finished(demo(home, *real)))
    assert orphans.marked((home / "demo").resolve()) == []


def test_workers_killed_in_the_middle_come_back_and_the_loop_closes_once(home):
    """A process dies at night: the supervisor restarts it, nothing is lost and nothing is done twice."""
    process = demo(home, "--keep")
    chance = random.Random(11)
    killed = {"agent": 0, "retrain": 0, "deploy": 0}
    while process.poll() is None:
        time.sleep(3)
        for worker in workers(home / "demo"):
            if killed[worker.name] < 2 and chance.random() < 0.5:
                worker.process.kill()
                killed[worker.name] += 1
    report = finished(process)
    assert_closed(report)
    assert min(killed.values()) >= 1, killed
    kept = home / "demo"
    for_drift = [
        each for each in events(kept, "model-registered") if report["chain"]["drift"] in each["data"]["caused_by"]
    ]
    assert len(for_drift) == 1
    deployed = events(kept, "deployed")
    assert len({each["id"] for each in deployed}) == len(deployed)
    assert [each["data"]["version"] for each in deployed] == sorted({each["data"]["version"] for each in deployed})
    the_tree_tells_it(kept, report, deployed)
    the_page_tells_it(report, deployed)


def the_tree_tells_it(kept, report, deployed):
    """`driftloop why latest` for a person, and for a program."""

    def why(*arguments):
        command = [*DRIFTLOOP, "why", "latest", *arguments]
        return subprocess.run(command, env=environment(kept), capture_output=True, text=True, check=True).stdout

    tree = why()
    places = [
        tree.index(part) for part in (f"drift            {report['device']}", "model-registered version", "deployed  ")
    ]
    assert places == sorted(places)
    for wanted in ("readings activity/", "promoted", "tried ", "digest sha256:", "in place of", "helped"):
        assert wanted in tree
    told = json.loads(why("--json"))
    assert told["event"]["id"] == deployed[-1]["id"]
    assert report["chain"]["drift"] in {each["id"] for each in told["before"]}


def the_page_tells_it(report, deployed):
    """Every view of the running stack, in a browser: what drifted, what was decided, which model serves."""
    if not Path(CHROMIUM).exists():  # a failure in CI all the same: tests/e2e/test_page.py needs it as well
        return
    from playwright.sync_api import sync_playwright

    url, serves, device = report["page"], deployed[-1]["data"]["version"], report["device"]
    wrong, said = [], {}
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": 1360, "height": 900})
        page.on("console", lambda each: wrong.append(each.text) if each.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        chosen = {"devices": f"/devices/{device}", "chain": f"/chain/{deployed[-1]['id']}"}
        for view, path in VIEWS.items():
            settled(page, url + chosen.get(view, path))
            said[view] = page.locator("main").inner_text()
            if os.environ.get("CI"):
                PICTURES.mkdir(parents=True, exist_ok=True)
                page.screenshot(path=PICTURES / f"{view}.png", full_page=True)
            if view == "models":
                assert page.locator(".heat").count() == 2, "confusion matrices, from MLflow"
        browser.close()
    assert wrong == []
    assert f"version {serves}" in said["overview"].lower()
    assert device in said["overview"]
    assert f"router sends to\nversion {serves}" in said["overview"]
    assert "drift" in said["devices"]
    assert f"Version {serves}\nserves" in said["models"]
    for wanted in (device, "model-registered", "deployed", "decisions"):
        assert wanted in said["chain"]
    assert "keeps up" in said["lag"]


def workers(home):
    """The agent, retrain and deploy processes, without the children that they have."""
    found = []
    for each in orphans.marked(home.resolve()):
        try:
            command = each.process.cmdline()
        except psutil.Error:
            continue
        if command[-2:-1] == ["run"] and each.name in ("agent", "retrain", "deploy"):
            found.append(each)
    return found
