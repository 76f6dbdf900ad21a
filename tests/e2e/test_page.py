"""The monitor's page in a real browser, against a real Kafka: true figures, live, safe, readable by everybody."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from deploy.local import supervisor
from schemas.envelope import encode, envelope
from schemas.events import QualityDegraded, WindowStatistics
from schemas.examples import EVENTS
from schemas.generate import ROOT
from schemas.settings import Settings
from schemas.topology import (
    ACTIVITY,
    AGENT_GROUP,
    CURRENT_MODEL,
    DECISIONS,
    DEPLOYED,
    DRIFT,
    MODEL_REGISTERED,
    dead_letters,
)
from streams import topics
from streams.deadletters import dead_letter_headers
from streams.devicestats import NAMES
from streams.gate import Record
from tests.contract.test_monitoring import expressions
from tests.e2e.screenshots import CHROMIUM, VIEWS, launch, settled
from tests.integration.kafka_tool import kafkas_tool

EVIL = "<img src=x onerror=document.title='owned'>"
ON = {
    "driftloop.drift.detected.v1": DRIFT,
    "driftloop.model.registered.v1": MODEL_REGISTERED,
    "driftloop.model.deployed.v1": DEPLOYED,
    "driftloop.decision.made.v1": DECISIONS,
}
PICTURES = ROOT / ".ci" / "artifacts" / "page"


class Monitor:
    """A monitor of our own, and what it is shown."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = settings.monitor_url
        self.producer = Producer({"bootstrap.servers": settings.kafka_bootstrap})
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        environment = os.environ | {
            "DRIFTLOOP_HOME": str(self.settings.home),
            "DRIFTLOOP_NAMESPACE": self.settings.namespace,
            "DRIFTLOOP_KAFKA_BOOTSTRAP": str(self.settings.kafka_bootstrap),
            "DRIFTLOOP_MONITOR_PORT": str(self.settings.monitor_port),
            "DRIFTLOOP_MONITOR_GROUPS": f"^{re.escape(self.settings.namespace)}",
            "DRIFTLOOP_MONITOR_SECONDS": "1",
        }
        command = [sys.executable, "-m", "workers.cli", "run", "monitor"]
        self.process = subprocess.Popen(command, env=environment, cwd=ROOT)
        self.until(lambda: httpx.get(f"{self.url}/ready", trust_env=False).status_code == 200)

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0

    def get(self, path: str):
        return httpx.get(self.url + path, trust_env=False, timeout=20).json()

    def until(self, true, seconds: float = 40) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if true():
                    return
            except (httpx.HTTPError, ValueError, KeyError, TypeError):
                pass
            assert time.monotonic() < deadline, "it did not come"
            time.sleep(0.2)

    def send(self, topic, event, id: str, *, at: float | None = None) -> None:
        told = envelope(event, id=id, source="driftloop/test", subject="", time=at or time.time())
        key, value, headers = encode(told)
        self.producer.produce(self.settings.topic(topic), key=key, value=value, headers=headers)
        self.producer.flush()


def fill(monitor: Monitor) -> None:
    """A chain of events, a drift of a device with a wicked name, readings half read, letters, and statistics."""
    settings, producer = monitor.settings, monitor.producer
    for name, topic in ON.items():
        monitor.send(topic, EVENTS[name].event, EVENTS[name].id)
    drift = EVENTS["driftloop.drift.detected.v1"].event
    monitor.send(DRIFT, msgspec.structs.replace(drift, device=EVIL, episode="evil"), "evil")
    broken = QualityDegraded(
        device=drift.device, model=drift.model, channel="gravity.x", fault="stuck", ts=drift.ts, position=drift.position
    )
    monitor.send(DRIFT, broken, "fault")
    monitor.send(CURRENT_MODEL, EVENTS["driftloop.model.deployed.v1"].event, "current")
    for number in range(120):
        producer.produce(settings.topic(ACTIVITY), key=b"k", value=b"v", partition=number % 3)
    letters = settings.topic(dead_letters(ACTIVITY))
    for number, value in enumerate((EVIL.encode(), b"\xff\x00", b"{" * 5000)):
        record = Record(number, 1.0, b"k", value, ())
        headers = dead_letter_headers(settings.topic(ACTIVITY), 0, record, "syntax", f"not JSON: {EVIL}")
        producer.produce(letters, key=b"k", value=value, headers=headers, partition=0)
    ends = [drift.change_ts + 5 * step for step in range(-60, 60)]
    shown = WindowStatistics(
        device=drift.device,
        statistics=NAMES,
        ends=ends,
        values=[[float(ts > drift.change_ts)] * len(NAMES) for ts in ends],
        activities=["wlk" if step % 20 < 10 else "sit" for step in range(120)],
    )
    producer.produce(settings.topic_of_statistics, key=drift.device, value=msgspec.json.encode(shown))
    producer.flush()
    consumer = Consumer({"bootstrap.servers": settings.kafka_bootstrap, "group.id": settings.namespace + AGENT_GROUP})
    consumer.commit(
        offsets=[TopicPartition(settings.topic(ACTIVITY), number, offset) for number, offset in enumerate((40, 25, 0))],
        asynchronous=False,
    )
    consumer.close()


class _Settings(Settings):
    @property
    def topic_of_statistics(self) -> str:
        return f"{self.namespace}device-statistics"


@pytest.fixture(scope="module")
def monitor(kafka_bootstrap, tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = _Settings(
        _env_file=None,
        home=tmp_path_factory.mktemp("monitor"),
        namespace=f"page{port}.",
        kafka_bootstrap=kafka_bootstrap,
        monitor_port=port,
    )
    topics.create(settings)
    monitor = Monitor(settings)
    fill(monitor)
    monitor.start()
    monitor.until(lambda: len(monitor.get("/api/events")) == 6 and monitor.get("/api/dead-letters")["letters"])
    yield monitor
    if monitor.process is not None and monitor.process.poll() is None:
        monitor.stop()


@pytest.fixture(scope="module")
def browser(needs):
    needs(Path(CHROMIUM).exists(), "Debian's chromium")
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    with sync_playwright() as playwright:
        chromium = launch(playwright)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, monitor):
    page = browser.new_page()
    page.wrong = []
    page.on("console", lambda said: page.wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(monitor.url) else page.wrong.append(asked.url))
    yield page
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_is_drawn_without_error_from_here_alone_and_readable_by_everybody(page, monitor, view, scheme):
    """No console error, no request to elsewhere, and nothing that axe-core calls serious; pictures are kept by CI."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.emulate_media(color_scheme=scheme)
    path = "/devices/phone-07" if view == "devices" else VIEWS[view]
    settled(page, monitor.url + path)
    if os.environ.get("CI"):
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / f"{view}-{scheme}.png", full_page=True)
    assert page.wrong == []
    found = axe.run(page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in ("serious", "critical")] == []
    for width in (390, 760):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
            f"scrolls sideways at {width} pixels"
        )


def test_the_lag_that_is_shown_is_the_one_that_kafkas_own_tool_tells(page, monitor):
    """A page that differs from the tool that everybody trusts is of no use."""
    group = monitor.settings.namespace + AGENT_GROUP
    theirs = kafkas_tool(monitor.settings, group)
    settled(page, f"{monitor.url}/lag?group={group}")
    rows = page.locator("tbody tr").all()
    shown = {(row.locator("td").nth(0).inner_text(), int(row.locator("td").nth(1).inner_text())): row for row in rows}
    assert len(theirs) >= 3
    for place, (committed, end, lag) in theirs.items():
        cells = [cell.inner_text() for cell in shown[place].locator("td").all()]
        assert cells[2:5] == [str(committed), str(end), str(lag)]
    never = shown[monitor.settings.topic(ACTIVITY), 3].locator("td").nth(2)
    assert never.inner_text() == "none yet"


def test_what_happened_can_be_told_from_the_overview_alone(page, monitor):
    """What drifted, what was decided, which model was made, and whether anything lags."""
    settled(page, monitor.url)
    said = page.locator("main").inner_text()
    for wanted in ("has stopped reading", "phone-07", "model-registered", "dead letters", "lag"):
        assert wanted in said
    served = EVENTS["driftloop.model.deployed.v1"].event.version
    assert f"version {served}" in said, "the one in service"
    assert "phone-07 has a fault: gravity.x (stuck)" in said
    assert "3 messages could not be used" in said
    told = monitor.get("/api/overview")["last_drift"]["says"]
    assert told.split(" ", 1)[1].rsplit(" (", 1)[0] in said  # the whole sentence, but for name and severity


def test_a_device_cannot_act_through_its_name(page, monitor):
    """Whoever can write to the topic would otherwise run scripts in an operator's browser."""
    for path in (
        "/",
        "/devices",
        "/chain/evil",
        "/letters",
        f"/devices/{EVIL.replace('<', '%3C').replace('>', '%3E')}",
    ):
        settled(page, monitor.url + path)
        assert page.locator("main img").count() == 0
        assert page.title() != "owned"
    settled(page, f"{monitor.url}/chain/evil")
    assert EVIL in page.locator("main").inner_text()


def test_news_come_by_themselves(page, monitor):
    """Nobody reloads a page that is on the wall."""
    settled(page, monitor.url)
    drift = EVENTS["driftloop.drift.detected.v1"].event
    monitor.send(DRIFT, msgspec.structs.replace(drift, device="phone-99", episode="new"), "fresh-one")
    page.wait_for_selector("text=phone-99", timeout=15_000)


def test_views_have_addresses_and_work_by_keyboard(page, monitor):
    """A link in a chat shows what the sender saw; not everybody has a mouse."""
    settled(page, f"{monitor.url}/chain/{EVENTS['driftloop.model.deployed.v1'].id}")
    assert page.locator("li.chosen").inner_text().count("deployed") > 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("nav a", has_text="Lag").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/lag")
    page.locator("th button", has_text="end").press("Enter")
    page.wait_for_selector("th[aria-sort]:has-text('end')")
    assert "by=end" in page.url
    page.go_back()
    page.wait_for_url("**/chain/**")


def test_a_restart_of_the_monitor_is_survived_and_yesterday_is_still_there(page, monitor):
    """The page reconnects by itself; what was measured before is shown again."""
    group = f"lag|{monitor.settings.namespace}{AGENT_GROUP}"
    monitor.until(lambda: monitor.get(f"/api/history?name={group}")["series"][group])
    before = monitor.get(f"/api/history?name={group}")["series"][group][0]
    settled(page, monitor.url)
    monitor.stop()
    page.wait_for_selector("#state:has-text('reconnecting')", timeout=15_000)
    monitor.start()
    page.wait_for_selector("#state.live", timeout=20_000)
    assert monitor.get(f"/api/history?name={group}")["series"][group][0] == before
    monitor.until(lambda: monitor.get("/api/dead-letters")["letters"])
    assert sum(each["count"] for each in monitor.get("/api/dead-letters")["counts"]) == 3


def test_a_broker_that_is_away_is_unknown_and_not_zero(page, monitor, servers, needs):
    """The most dangerous picture is a calm one of a cluster that does not answer."""
    running = supervisor.connect(servers.stack.home)
    needs(running is not None and "kafka" in running.info(), "a Kafka that the tests may restart")
    settled(page, f"{monitor.url}/lag")
    running.stop(["kafka"])
    page.wait_for_selector(".big:has-text('unknown')", timeout=40_000)
    assert "kafka_consumergroup_lag{" not in httpx.get(f"{monitor.url}/metrics", trust_env=False).text
    running.start("kafka")
    page.wait_for_selector("tbody tr", timeout=60_000)
    assert monitor.process.poll() is None


def test_every_expression_of_the_boards_and_rules_is_answered(monitor, needs, tmp_path):
    """A running Prometheus with our metrics: a board with a misspelt label shows an empty panel, and nobody notices."""
    needs(shutil.which("prometheus"), "prometheus")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    target = monitor.url.removeprefix("http://")
    scrape = f"{{job_name: monitor, scrape_interval: 1s, static_configs: [{{targets: ['{target}']}}]}}"
    (tmp_path / "prometheus.yml").write_text(f"scrape_configs: [{scrape}]\n")
    command = ["prometheus", "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{port}"]
    url = f"http://127.0.0.1:{port}/api/v1"

    def query(text):
        return httpx.get(f"{url}/query", params={"query": text}, trust_env=False).json()

    with subprocess.Popen([*command, "--storage.tsdb.path=data"], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        try:
            monitor.until(lambda: len(query("count_over_time(kafka_consumergroup_lag[1m]) > 2")["data"]["result"]) > 0)
            for where, expression in expressions():
                filled = expression.replace("$__rate_interval", "1m").replace("$group", ".+")
                found = query(filled)
                assert found["status"] == "success", (where, found)
                if where.startswith("lag:"):
                    assert found["data"]["result"], f"{where}: nothing to show"
        finally:
            process.terminate()
