"""`driftloop`: the one command in front of everything. Heavy imports stay inside the commands that need them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from schemas.settings import Settings
    from streams.recording import Recording

FINDING = 1
WRONG_USE = 2
BROKER_S = 10.0
PIPE_COLUMNS = 200

app = typer.Typer(
    name="driftloop",
    help="Watches sensor readings on Kafka, notices drift, retrains, and deploys the better model.",
    no_args_is_help=False,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
topics_app = typer.Typer(help="Topics, made and checked from the topology.", no_args_is_help=True)
config_app = typer.Typer(help="Settings.", no_args_is_help=True)
app.add_typer(topics_app, name="topics")
app.add_typer(config_app, name="config")
model_app = typer.Typer(help="Versions, and a hand on the wheel.", no_args_is_help=True)
app.add_typer(model_app, name="model")
dlq_app = typer.Typer(help="Dead letters: records that could not be used.", no_args_is_help=True)
app.add_typer(dlq_app, name="dlq")

AsJson = Annotated[bool, typer.Option("--json", help="facts as JSON instead of words")]


def main() -> None:
    """Entry point: what a person did wrong is one line and exit code 2, never a traceback."""
    from schemas.errors import Retry, Stop, UserError

    try:
        app()
    except UserError as error:
        _fail(str(error), WRONG_USE)
    except Retry as error:
        _fail(f"{error}; try again once it is there", FINDING)
    except Stop as error:
        _fail(str(error), FINDING)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str, code: int) -> NoReturn:
    print(f"driftloop: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


@app.callback()
def _help_by_default(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def _settings() -> Settings:
    from schemas.settings import load_settings

    return load_settings()


def _console() -> Console:
    from rich.console import Console

    # A pipe or a file gets each event as one line.
    on_screen = sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=not on_screen, width=None if on_screen else PIPE_COLUMNS)


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="a MotionSense zip or folder instead of the simulator")] = None,
    keep: Annotated[bool, typer.Option(help="leave the stack up afterwards")] = False,
    as_json: AsJson = False,
) -> None:
    """The whole loop on this machine: readings, a drift, a retraining, a better model in service."""
    from workers.demo import run_demo

    raise typer.Exit(run_demo(_settings(), data=data, keep=keep, as_json=as_json, console=_console()))


@app.command()
def up() -> None:
    """Start the one-machine stack and leave it running: Kafka, MLflow and our processes."""
    from workers.stack import start

    settings = start(_settings(), _console().print)
    _console().print(f"\nSee it at [bold]{settings.monitor_url}[/]: lag, drift, models and devices.")


@app.command()
def down() -> None:
    """Stop the one-machine stack; data and ports stay."""
    from workers.stack import stack
    from workers.targets import clear

    settings = _settings()
    stack(settings).down(_console().print)
    if settings.target == "docker":  # what runs in Azure serves on, as on any day on which this machine is off
        clear(settings)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Every process of the stack and how it is. Exit code 1 if any is not well."""
    from dataclasses import asdict

    from workers.stack import processes, table, well

    found = processes(_settings())
    if as_json:
        print(json.dumps([asdict(each) for each in found]))
    elif not found:
        _console().print("nothing is running; `driftloop up` starts the stack")
    else:
        _console().print(table(found))
    raise typer.Exit(0 if found and well(found) else FINDING)


@topics_app.command("create")
def topics_create(as_json: AsJson = False) -> None:
    """Make what is missing; what exists is left as it is."""
    from streams import topics

    settings = _settings()
    made = topics.create(settings, stopping=_after(BROKER_S))
    _report(made, as_json, "created {}", "every topic was there already")
    raise typer.Exit(FINDING if _problems(topics.check(settings, stopping=_after(BROKER_S)), as_json=False) else 0)


@topics_app.command("check")
def topics_check(as_json: AsJson = False) -> None:
    """Compare the topics with the topology. Exit code 1 if anything is wrong."""
    from streams import topics

    raise typer.Exit(FINDING if _problems(topics.check(_settings(), stopping=_after(BROKER_S)), as_json) else 0)


def _after(seconds: float) -> Callable[[], bool]:
    """True from so many seconds on: a person at a prompt does not wait for a broker as long as a process does."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def _report(items: list[str], as_json: bool, form: str, nothing: str) -> None:
    if as_json:
        print(json.dumps(items))
        return
    for item in items:
        print(form.format(item))
    if not items:
        print(nothing)


def _problems(problems: list[str], as_json: bool) -> bool:
    if as_json or problems:
        _report(problems, as_json, "{}", "")
    return bool(problems)


@app.command()
def produce(
    data: Annotated[Path | None, typer.Option(help="a MotionSense zip or folder")] = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="synthetic people instead of recordings")] = False,
    subjects: Annotated[str | None, typer.Option(help="which subjects of --data, as in 1-6,9")] = None,
    devices: Annotated[int, typer.Option(min=1, help="how many simulated devices")] = 4,
    seconds: Annotated[float, typer.Option(min=3, help="how long each is simulated for")] = 600,
    speed: Annotated[str, typer.Option(help="1 plays in real time, max as fast as Kafka takes it")] = "1",
    batch: Annotated[int, typer.Option(min=1, max=1000, help="readings in a message")] = 1,
    drift: Annotated[
        list[str] | None, typer.Option(help="KIND:AMOUNT@SECONDS[:DEVICE], as in rotate:90@300:phone-02")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="stop after so many readings")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the simulation and the drifts")] = 0,
    as_json: AsJson = False,
) -> None:
    """Readings to Kafka. Exit code 1 if any was not delivered."""
    from schemas.errors import UserError
    from streams.producer import produce as send

    if (data is None) == (not simulate):
        raise UserError("give either --data PATH or --simulate")
    recordings = _recordings(data, subjects, devices, seconds, drift or [], seed)
    total = min(sum(map(len, recordings)), limit or sys.maxsize)
    with _progress("readings", total, as_json) as advance:
        produced = send(_settings(), recordings, speed=_speed(speed), batch=batch, limit=limit, progress=advance)
    if as_json:
        from dataclasses import asdict

        print(json.dumps(asdict(produced)))
    else:
        lost = f", {produced.failed} failed: {dict(produced.reasons)}" if produced.failed else ""
        print(f"{produced.delivered} of {produced.planned} readings delivered in {produced.messages} messages{lost}")
    raise typer.Exit(0 if produced.delivered == produced.planned else FINDING)


def _speed(text: str) -> float | None:
    from schemas.errors import UserError

    if text == "max":
        return None
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--speed {text}: give a number, as in 1 for real time, or max") from None


def _recordings(
    data: Path | None, subjects: str | None, devices: int, seconds: float, drifts: list[str], seed: int
) -> list[Recording]:
    """What to play; event time begins now."""
    import numpy as np

    from schemas.errors import UserError
    from streams.inject import apply, parse_drift
    from streams.motionsense import parse_subjects, recordings
    from streams.simulator import simulate

    wanted = [parse_drift(text) for text in drifts]
    start = float(int(time.time()))
    if data is None:
        played = simulate(devices, seconds, seed, start)
    else:
        played = recordings(data, parse_subjects(subjects) if subjects else None, start)

    def other(person: str | None, device: str) -> Recording | None:
        """Who takes a device over in a `subject` drift: the person named, or anyone else."""
        if data is None:
            number = int(person) if person and person.isdigit() else devices + 1
            return simulate(1, seconds, seed, start, first=number)[0]
        if person is not None:
            return recordings(data, parse_subjects(person), start)[0]
        return next((each for each in played if each.device != device), None)

    names = {recording.device for recording in played}
    for item in wanted:
        if item.device is not None and item.device not in names:
            raise UserError(f"--drift names {item.device}, which does not play; there are {', '.join(sorted(names))}")
        for index, recording in enumerate(played):
            if item.device in (None, recording.device):
                taker = other(item.person, recording.device) if item.kind == "subject" else None
                played[index] = apply(recording, item, np.random.default_rng([seed, index]), taker)
    return played


@app.command()
def backtest(
    data: Annotated[Path | None, typer.Option(help="MotionSense recordings: zip or folder")] = None,
    topic: Annotated[bool, typer.Option("--topic", help="what the activity topic holds now, instead")] = False,
    policy: Annotated[
        list[Path] | None, typer.Option(help="settings, in lines as of .env, to compare; may be given again")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="alarms and retrainings over time: .png, .svg or .html")] = None,
    reference: Annotated[str, typer.Option(help="subjects whom the profile learns from")] = "1-12",
    subjects: Annotated[str, typer.Option(help="subjects who are monitored; --reference must not hold them")] = "13-18",
    as_json: AsJson = False,
) -> None:
    """What the settings in force, or policies side by side, would have done: alarms, retrains, delays, seconds."""
    from schemas.errors import UserError
    from streams.motionsense import parse_subjects

    learned, monitored = parse_subjects(reference), parse_subjects(subjects)
    if set(learned) & set(monitored):
        raise UserError("--reference and --subjects share people: known people would flatter the figures")
    if (data is None) == (not topic):
        raise UserError("say where the readings are: --data PATH or --topic")
    if data is not None and not policy and figure is None:
        _backtest_detector(data, learned, monitored, as_json)
        return
    from workers.backtest_policies import (
        compare,
        draw,
        lives_of_recordings,
        lives_of_topic,
        policy_settings,
        profile_in_service,
    )

    settings = _settings()
    policies = {path.stem: policy_settings(path) for path in policy or ()} or {"in force": settings}
    if data is None:
        lives, profile = lives_of_topic(settings), profile_in_service(settings)
    else:
        lives, profile = lives_of_recordings(data, learned, monitored, settings.training_seed)
    with _progress("lives", len(lives) * len(policies), as_json) as advance:
        rows, told = compare(lives, profile, policies, advance)
    if figure is not None:
        draw(told, figure)
    if as_json:
        print(json.dumps({"policies": rows}))
        return
    from rich.table import Table

    table = Table("", *(row["policy"] for row in rows), box=None, header_style="bold")
    for key in [key for key in rows[0] if key not in ("policy", "decisions")]:
        table.add_row(key.replace("_", " "), *("" if row[key] is None else f"{row[key]:,}" for row in rows))
    for reason in sorted({reason for row in rows for reason in row["decisions"]}):
        table.add_row(f"[dim]{reason}[/]", *(str(row["decisions"].get(reason, 0)) for row in rows))
    _console().print(table)


def _backtest_detector(data: Path, learned: Sequence[int], monitored: Sequence[int], as_json: bool) -> None:
    from rich.table import Table

    from workers.backtest import report

    found = report(data, learned, monitored, _settings())
    if as_json:
        print(json.dumps(found))
        return
    table = Table(*found["rows"][0], box=None)
    for row in found["rows"]:
        table.add_row(
            *("" if item is None else f"{item:.2f}" if isinstance(item, float) else str(item) for item in row.values())
        )
    console = _console()
    low, high = found["false_alarms_ci95"]
    console.print(
        f"{found['false_alarms_per_hour']:.2f} false alarms an hour ({low:.2f} to {high:.2f}) "
        f"in {found['normal_hours']:.1f} hours without drift"
    )
    console.print(table)


@app.command()
def run(
    process: Annotated[Literal["agent", "retrain", "deploy", "router", "monitor"], typer.Argument(help="which one")],
    allow_actions: Annotated[bool, typer.Option(help="monitor: its page may replay dead letters")] = False,
) -> None:
    """One process in the foreground; SIGTERM stops it cleanly."""
    from importlib import import_module

    # Until the process listens itself: a supervisor that stops what is still loading gets no failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = _settings()
    if allow_actions:
        settings = settings.model_copy(update={"monitor_actions": True})
    sys.argv = sys.argv[:1]  # Faust reads it
    import_module(f"workers.{process}").run(settings)


@app.command()
def events(
    topic: Annotated[
        Literal["drift", "decisions", "model-registered", "deployed"] | None,
        typer.Argument(help="one topic; all of them"),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on as events come")] = False,
    since: Annotated[str | None, typer.Option(help="only newer ones: 10m, 2h, 3d or an ISO time")] = None,
    as_json: AsJson = False,
) -> None:
    """Read events as a person: one line each."""
    from schemas.topology import EVENT_TOPICS
    from streams.eventlog import read_events
    from workers.narrate import line, plain

    chosen = [item for item in EVENT_TOPICS if topic in (None, item.name)]
    console = _console()
    logs = read_events(_settings(), chosen, follow=follow, since=None if since is None else _since(since))
    found = (logged for logged in logs if logged is not None)
    for logged in found if follow else sorted(found, key=lambda item: item.written):
        if as_json:
            print(json.dumps(plain(logged)), flush=True)
        else:
            console.print(line(logged), soft_wrap=True)


@app.command()
def lag(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="look again every two seconds")] = False,
    group: Annotated[str | None, typer.Option(help="regular expression of the groups; all of them")] = None,
    as_json: AsJson = False,
) -> None:
    """How far each consumer group is behind, and whether that is trouble. Exit code 1 if any has stopped or stalled."""
    from dataclasses import asdict

    from rich.markup import escape

    from schemas.errors import Retry
    from streams.lag import TROUBLE
    from workers.lag_table import looks, table

    found = False
    for lags in looks(_settings(), group, watch=watch):
        console = _console()
        if watch and not as_json and sys.stdout.isatty():
            console.clear()
        if isinstance(lags, Retry):
            print("null", flush=True) if as_json else console.print(f"unknown: {escape(str(lags))}")
            continue
        found = any(each.verdict in TROUBLE for each in lags)
        if as_json:
            print(json.dumps([asdict(each) for each in lags]), flush=True)
        else:
            console.print(table(lags))
        if not watch:
            break
    raise typer.Exit(FINDING if found else 0)


@app.command()
def why(
    wanted: Annotated[str, typer.Argument(metavar="ID|VERSION|latest", help="an event's id, or how it begins")],
    as_json: AsJson = False,
) -> None:
    """What caused an event or a model's version, and what it caused."""
    from schemas.topology import EVENT_TOPICS
    from streams.eventlog import read_events
    from workers import views
    from workers.chain import Chain, facts, tree
    from workers.mlflow_notes import notes

    settings, chain = _settings(), Chain()
    found = (logged for logged in read_events(settings, EVENT_TOPICS) if logged is not None)
    for logged in sorted(found, key=lambda item: item.written):
        chain.add(logged)
    asked = chain.find(wanted, settings.model)
    around = chain.around(asked)
    known = notes(settings, [*around.before, asked, *around.after])
    if as_json:
        print(json.dumps(views.chain(chain, asked) | {"mlflow": known}))
    else:
        console = _console()
        shown = {each.envelope.id: facts(each.envelope.event) for each in (*around.before, asked, *around.after)}
        for id, lines in known.items():
            shown.setdefault(id, []).extend(lines)
        console.print(tree(chain, asked, shown))
        others = len(chain.episode(asked))
        if others:
            console.print(f"[dim]{others} more drifts of the same episode: the same change in other features[/]")


DlqTopic = Annotated[str | None, typer.Option(help="of which topic: activity, drift or model-registered; all of them")]
DlqClass = Annotated[str | None, typer.Option("--class", help="only of this class, as in out-of-range")]


@dlq_app.command("list")
def dlq_list(
    topic: DlqTopic = None,
    reject_class: DlqClass = None,
    limit: Annotated[int, typer.Option(min=1, help="how many, the last ones")] = 20,
    as_json: AsJson = False,
) -> None:
    """Dead letters by class, and the last ones."""
    from workers.dlq import letters, table
    from workers.views import letter_json

    found = letters(_settings(), topic, reject_class)
    if as_json:
        print(json.dumps([letter_json(each) for each in found[-limit:]]))
    elif not found:
        print("no dead letters")
    else:
        _console().print(table(found, limit))


@dlq_app.command("show")
def dlq_show(
    name: Annotated[str, typer.Argument(metavar="TOPIC/PARTITION/OFFSET", help="as `dlq list` names it")],
    as_json: AsJson = False,
) -> None:
    """One dead letter: where it came from, why it was refused, its bytes."""
    from workers.dlq import one, tell_letter
    from workers.views import letter_json

    found = one(_settings(), name)
    if as_json:
        print(json.dumps(letter_json(found)))
    else:
        _console().print(tell_letter(found), soft_wrap=True)


@dlq_app.command("replay")
def dlq_replay(
    name: Annotated[str | None, typer.Argument(metavar="[TOPIC/PARTITION/OFFSET]", help="one; all that match")] = None,
    topic: DlqTopic = None,
    reject_class: DlqClass = None,
    limit: Annotated[int, typer.Option(min=1, help="at most so many")] = 1000,
    rate: Annotated[float, typer.Option(min=0.1, help="so many a second")] = 50,
    again: Annotated[bool, typer.Option("--again", help="those that have come back once, too")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="really send them; otherwise it is only told what would be")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters again to where they came from, each at most once. Tells what it would do, unless --yes."""
    from streams.letters import plan
    from streams.replay_letters import replay, replayed
    from workers.dlq import letters, one

    settings = _settings()
    found = [one(settings, name)] if name else letters(settings, topic, reject_class, whole=True)
    chosen = plan(found, replayed(settings), most=limit, again=again)
    sent = 0
    if yes and chosen.chosen:
        with _progress("letters", len(chosen.chosen), as_json) as advance:
            sent = replay(settings, chosen.chosen, rate=rate, progress=advance)
    if as_json:
        told = {"would": [each.name for each in chosen.chosen], "sent": sent, "passed_over": dict(chosen.passed_over)}
        print(json.dumps(told))
        return
    for why_not, count in chosen.passed_over.items():
        print(f"{count} passed over: {why_not}")
    if yes:
        print(f"{sent} sent again")
    else:
        print(f"{len(chosen.chosen)} would be sent again; add --yes to send them")


def _since(text: str) -> float:
    from datetime import UTC, datetime

    from schemas.errors import UserError

    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    try:
        if text[-1:] in units:
            return time.time() - float(text[:-1]) * units[text[-1]]
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except ValueError:
        raise UserError(f"--since {text}: give 10m, 2h, 3d or a time such as 2026-11-23T18:00:00+00:00") from None


@app.command("runtime-image")
def runtime_image(as_json: AsJson = False) -> None:
    """Build the image that models are layers on, and push it if DRIFTLOOP_IMAGE_REPOSITORY names a registry."""
    from deploy.image.engine import Runtime, connect
    from workers.targets import registry

    settings = _settings()
    found, runtime = registry(settings), Runtime(connect(), settings.base_image)
    image = runtime.image() if found is None else runtime.push(found)
    print(json.dumps({"runtime_image": image}) if as_json else f"DRIFTLOOP_RUNTIME_IMAGE={image}")


@app.command()
def doctor(
    target: Annotated[
        Literal["process", "docker", "aci"] | None, typer.Option(help="look at this target; the one of the settings")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check broker, topics, MLflow, target and clock; says how to mend what is wrong. Exit code 1 then."""
    from dataclasses import asdict

    from workers.doctor import examine

    settings = _settings()
    findings = examine(settings if target is None else settings.model_copy(update={"target": target}))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        console = _console()
        for finding in findings:
            mark = "[green]ok[/]" if finding.good else "[red]no[/]"
            console.print(f"{mark}  {finding.what}: {finding.detail}")
    raise typer.Exit(0 if all(finding.good for finding in findings) else FINDING)


@app.command()
def retrain(
    now: Annotated[bool, typer.Option("--now", help="train on what has come since the last training")] = False,
    run: Annotated[
        str | None, typer.Option("--from", metavar="RUN", help="repeat a run on the very same bytes")
    ] = None,
    hold: Annotated[bool, typer.Option("--hold", help="no trainings from here on")] = False,
    release: Annotated[bool, typer.Option("--release", help="they may go on")] = False,
    device: Annotated[str | None, typer.Option(help="with --now: only its readings")] = None,
    reason: Annotated[str, typer.Option(help="why; it stands in the event")] = "",
    timeout: Annotated[float, typer.Option(min=1, help="seconds to wait for the answer")] = 900,
    as_json: AsJson = False,
) -> None:
    """A hand on retraining: now, again on a run's windows, held back, released. Exit code 1 without a new version."""
    import msgspec

    from schemas.errors import UserError
    from schemas.events import ModelRegistered, RetrainAction
    from workers.narrate import tell
    from workers.switch import ask_retraining

    chosen: dict[RetrainAction, bool] = {"now": now, "repeat": run is not None, "hold": hold, "release": release}
    actions = [action for action, wanted in chosen.items() if wanted]
    if len(actions) != 1:
        raise UserError("say one of --now, --from RUN, --hold, --release")
    [action] = actions
    answer = ask_retraining(_settings(), action, run_id=run, device=device, detail=reason, seconds=timeout)
    print(json.dumps(msgspec.to_builtins(answer.event)) if as_json else tell(answer.event))
    made = isinstance(answer.event, ModelRegistered) or getattr(answer.event, "outcome", "") == "promoted"
    raise typer.Exit(0 if made or action in ("hold", "release") else FINDING)


@model_app.command("list")
def model_list(as_json: AsJson = False) -> None:
    """Every version: which serves, which is the way back, which were left or never served."""
    from dataclasses import asdict
    from datetime import datetime

    from rich.table import Table

    from workers.switch import versions

    found = versions(_settings())
    if as_json:
        print(json.dumps([asdict(each) for each in found]))
        return
    table = Table("version", "state", "winner", "macro F1", "registered", "image", box=None, header_style="bold")
    for each in found:
        when = datetime.fromtimestamp(each.registered).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        score = "" if each.recent is None else f"{each.recent:.3f}"
        table.add_row(each.version, each.state, each.winner, score, when, each.image or "")
    _console().print(table if found else "no version is registered yet")


@model_app.command("promote")
def model_promote(
    version: Annotated[str, typer.Argument(help="the version to put into service")],
    reason: Annotated[str, typer.Option(help="why; it stands in the event")] = "",
    timeout: Annotated[float, typer.Option(min=1, help="seconds to wait for the answer")] = 180,
    as_json: AsJson = False,
) -> None:
    """Put a registered version into service, whatever its age. Exit code 1 if it was refused."""
    _switch("promote", version, reason, timeout, as_json)


@model_app.command("rollback")
def model_rollback(
    version: Annotated[str | None, typer.Option("--from", help="only if this version serves")] = None,
    reason: Annotated[str, typer.Option(help="why; it stands in the event")] = "",
    timeout: Annotated[float, typer.Option(min=1, help="seconds to wait for the answer")] = 180,
    as_json: AsJson = False,
) -> None:
    """Put the version back into service that served before. Exit code 1 if there is none."""
    _switch("rollback", version, reason, timeout, as_json)


def _switch(
    action: Literal["promote", "rollback"], version: str | None, reason: str, seconds: float, as_json: bool
) -> None:
    import msgspec

    from workers.switch import answered, ask

    answer = ask(_settings(), action, version, reason, seconds=seconds)
    granted, sentence = answered(answer)
    print(json.dumps(msgspec.to_builtins(answer.event)) if as_json else sentence)
    raise typer.Exit(0 if granted else FINDING)


@config_app.command("show")
def config_show(as_json: AsJson = False) -> None:
    """Settings in force, secrets redacted."""
    from schemas.settings import Settings, variable

    settings = _settings()
    values = settings.model_dump(mode="json")
    if as_json:
        print(json.dumps(values))
        return
    from rich.table import Table

    table = Table("setting", "value", "meaning", box=None, header_style="bold")
    for name, field in Settings.model_fields.items():
        value = values[name]
        table.add_row(variable(name), "" if value is None else str(value), field.description)
    _console().print(table)


@contextmanager
def _progress(what: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr that is told how many are done; none where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    columns: list[Any] = [TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


if __name__ == "__main__":
    # Started as a module by the stack; librdkafka and Faust find our own arguments gone.
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
