"""The command line as a person meets it: help at once, one line for a mistake, exit codes that scripts can rely on."""

import json
import os
import subprocess
import sys

import pytest


@pytest.fixture
def driftloop(tmp_path):
    """Run `driftloop` in an empty folder, with nothing set but what a test sets."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("DRIFTLOOP_", "MLFLOW_"))}

    def run(*arguments, **settings):
        return subprocess.run(
            [sys.executable, "-m", "workers.cli", *arguments],
            env=clean | settings,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def test_without_a_command_it_helps(driftloop):
    """The first thing anyone types."""
    said = driftloop()
    assert said.returncode == 0
    for command in ("demo", "up", "down", "status", "topics", "produce", "run", "events", "doctor", "config"):
        assert command in said.stdout


def test_help_needs_none_of_the_heavy_libraries():
    """`driftloop --help` has to answer at once; importing MLflow alone takes seconds."""
    heavy = {"mlflow", "sklearn", "faust", "numpy", "pandas", "confluent_kafka", "river", "matplotlib", "rich.table"}
    code = f"import sys, workers.cli; print(sorted({heavy!r} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


MISTAKES = {
    "no kind of retraining": (["retrain"], {}, "--now"),
    "two kinds of retraining": (["retrain", "--now", "--hold"], {}, "--from RUN"),
    "a backtest of nothing": (["backtest"], {}, "--topic"),
    "a policy that is not there": (["backtest", "--topic", "--policy", "none.env"], {}, "no such file"),
    "a setting that is not one of its values": (
        ["config", "show"],
        {"DRIFTLOOP_DETECTOR": "foo"},
        "DRIFTLOOP_DETECTOR",
    ),
    "a setting out of range": (["config", "show"], {"DRIFTLOOP_ROUTER_PORT": "70000"}, "DRIFTLOOP_ROUTER_PORT"),
    "a missing data path for produce": (["produce", "--data", "/nope"], {}, "/nope"),
    "a missing data path for demo": (["demo", "--data", "/nope"], {}, "/nope"),
    "no source of readings": (["produce"], {}, "--simulate"),
    "two sources of readings": (["produce", "--simulate", "--data", "x"], {}, "--simulate"),
    "a drift that is none": (["produce", "--simulate", "--drift", "melt:3@1"], {}, "rotate:90@300"),
    "a drift of a device that does not play": (
        ["produce", "--simulate", "--drift", "gain:2@1:phone-77"],
        {"DRIFTLOOP_KAFKA_BOOTSTRAP": "127.0.0.1:1"},
        "phone-77",
    ),
    "a speed that is none": (["produce", "--simulate", "--speed", "fast"], {}, "--speed"),
    "a time that is none": (["events", "--since", "soon"], {"DRIFTLOOP_KAFKA_BOOTSTRAP": "127.0.0.1:1"}, "--since"),
    "no Kafka known": (["topics", "check"], {}, "driftloop up"),
    "a home that cannot be written": (["up"], {"DRIFTLOOP_HOME": "/proc/driftloop"}, "DRIFTLOOP_HOME"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_says_what_to_do(driftloop, mistake):
    """A traceback tells a person nothing, and a script needs to know that it was used wrongly: exit code 2."""
    arguments, settings, named = MISTAKES[mistake]
    said = driftloop(*arguments, **settings)
    assert said.returncode == 2, said.stderr
    assert said.stderr.startswith("driftloop: ")
    assert named in said.stderr
    assert len(said.stderr.strip().splitlines()) == 1


def test_an_unknown_process_is_wrong_use(driftloop):
    """What can be run is said with the refusal."""
    said = driftloop("run", "nothing")
    assert said.returncode == 2
    assert "agent" in said.stderr


def test_status_of_nothing_is_a_finding(driftloop):
    """A health check in a script must fail when nothing runs."""
    assert driftloop("status").returncode == 1
    assert json.loads(driftloop("status", "--json").stdout) == []


def test_doctor_says_how_to_mend_each_thing(driftloop):
    """On a machine with nothing set up it names the command that sets it up."""
    said = driftloop("doctor", "--json")
    assert said.returncode == 1
    findings = {each["what"]: each for each in json.loads(said.stdout)}
    assert not findings["broker"]["good"]
    assert "driftloop up" in findings["broker"]["detail"]
    assert not findings["MLflow"]["good"]


def test_secrets_are_never_shown(driftloop):
    """`config show` is what people paste into issues."""
    for arguments in (["config", "show"], ["config", "show", "--json"]):
        said = driftloop(*arguments, DRIFTLOOP_KAFKA_SASL_PASSWORD="hunter2")
        assert said.returncode == 0
        assert "hunter2" not in said.stdout + said.stderr


def test_the_endpoint_of_an_absent_broker_gives_up_in_words(driftloop):
    """A person at a prompt is not a process that waits all night."""
    said = driftloop("topics", "check", DRIFTLOOP_KAFKA_BOOTSTRAP="127.0.0.1:1")
    assert said.returncode == 1
    assert said.stderr.splitlines()[-1].startswith("driftloop: Kafka")
