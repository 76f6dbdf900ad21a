"""docker-compose.yml runs the processes that the one-machine stack runs, with settings that exist."""

import yaml

from schemas.generate import ROOT
from schemas.settings import Settings, variable
from schemas.topology import DEAD_LETTER_BYTES
from workers.stack import PROCESSES

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def test_every_process_of_the_stack_is_a_service():
    """A process that the file forgets is a loop that does not close."""
    commands = {tuple(service.get("command", ())) for service in COMPOSE.values()}
    assert {("run", name) for name in PROCESSES} <= commands


OURS = {name: each for name, each in COMPOSE.items() if each.get("command", [None])[0] == "run"}


def test_only_settings_that_exist_are_set():
    """A misspelt variable is ignored, and the process runs with something else."""
    known = {variable(name) for name in Settings.model_fields}
    for service in OURS.values():
        assert set(service["environment"]) <= known
    secrets = {f"DRIFTLOOP_{name}".upper() for name in ("monitor_token",)}
    assert secrets <= known


def test_settings_are_such_as_the_processes_take():
    """What pydantic refuses ends the container over and over."""
    for service in OURS.values():
        Settings(
            _env_file=None, **{name.removeprefix("DRIFTLOOP_").lower(): v for name, v in service["environment"].items()}
        )


def test_every_service_is_confined_and_says_whether_it_is_well():
    """A container that hangs must be seen, and one that is broken into must not be worth much."""
    for name, service in COMPOSE.items():
        assert service["stop_grace_period"] == "40s", name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert "mem_limit" in service, name
        assert name == "topics" or "healthcheck" in service, name
    for name, service in OURS.items():
        assert (service["read_only"], service["user"], service["cap_drop"]) == (True, "10001:10001", ["ALL"]), name


def test_no_secret_stands_in_the_file():
    """They are files that are mounted where they are needed, and nowhere else."""
    for name, service in COMPOSE.items():
        for variable_name, value in (service.get("environment") or {}).items():
            assert "PASSWORD" not in variable_name or value.startswith("/run/secrets/"), name


def test_prometheus_scrapes_every_process_that_has_metrics():
    """A target that is misspelt is down for ever, and nobody wonders."""
    targets = {
        target
        for job in yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text())["scrape_configs"]
        for group in job["static_configs"]
        for target in group["targets"]
    }
    assert {target.partition(":")[0] for target in targets} == {*OURS} - {"router"}
    asked = COMPOSE["monitor"]["environment"]["DRIFTLOOP_PROCESSES"].split(",")
    assert {each.partition("=")[0] for each in asked} == {*OURS} - {"monitor"}


def test_mlflow_is_asked_through_its_api_under_its_own_name():
    """/health answers 200 while the host check turns every client away."""
    check = " ".join(COMPOSE["mlflow"]["healthcheck"]["test"])
    assert "http://mlflow:5000/api/" in check
    assert "/health" not in check


def test_the_broker_takes_what_is_dead_lettered():
    """A dead letter that the broker refuses would stop the agent."""
    environment = COMPOSE["kafka"]["environment"]
    assert int(environment["KAFKA_MESSAGE_MAX_BYTES"]) >= DEAD_LETTER_BYTES
    assert environment["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"


def test_no_image_names_a_registry():
    """Where images come from is the user's choice."""
    for service in COMPOSE.values():
        first, slash, _ = service["image"].partition("/")
        assert not (slash and ("." in first or ":" in first))
