"""Trainings and model versions in MLflow: what was tried, what won, and which version is the champion.

MLflow gives no uniqueness, so a version carries the id of the event that asked for it and is looked up before another
one is made; only the worker that owns the partition writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version as installed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from deploy.modelfiles import ALLOWED, PROFILE, SMOKE, SmokeCases, digest, verify
from deploy.trust import SigningKey, check_signature, key_from, own_key
from schemas.errors import Reject, Retry, UserError, first_line
from schemas.events import ModelRegistered
from schemas.settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

EVENT_TAG: Final = "drift.event_id"
ATTEMPT_TAG: Final = "driftloop.attempt"
OUTCOME_TAG: Final = "driftloop.outcome"
DECISION_TAG: Final = "driftloop.decision"
REGISTERED_TAG: Final = "driftloop.registered"
SIGNATURE_TAG: Final = "driftloop.signature"
CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
PREVIOUS: Final = "previous"
SMOKE_ROWS: Final = 20
_REQUIRED: Final = ("scikit-learn", "skops", "numpy", "pandas")


@dataclass(frozen=True, slots=True)
class Tried:
    """One candidate for the record. metrics: by name; params: the classifier's."""

    name: str
    params: dict[str, Any]
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Winner:
    """The model to register. columns: feature names; examples: (n, k) held-out rows that the smoke test will ask.

    profile: the reference profile's bytes.
    """

    pipeline: Any
    columns: Sequence[str]
    examples: np.ndarray[Any, np.dtype[np.float64]]
    profile: bytes | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """All that is recorded of one retraining. decision: what came of it, as JSON; outcome: in a word."""

    event_id: str
    attempt: int
    outcome: str
    decision: str
    params: dict[str, Any]
    tags: dict[str, str]
    window: dict[str, Any]
    tried: Sequence[Tried]
    figures: dict[str, Figure]
    tables: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def world_may_fail() -> Iterator[None]:
    """Turns "MLflow is not there" into Retry and "it has no such thing" into Reject; other errors stay what they are.

    Reject: `unknown-version` for a model, version or file that somebody has deleted.
    """
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if (named := _named(error.get_http_status_code(), error)) is None:
            raise
        raise named from error
    except requests.HTTPError as error:
        if (named := _named(0 if error.response is None else error.response.status_code, error)) is None:
            raise
        raise named from error
    except requests.RequestException as error:
        raise Retry(f"MLflow does not answer: {error}") from error
    except OSError as error:
        raise Retry(f"a model's files cannot be kept here: {error}") from error


def _named(status: int, error: Exception) -> Exception | None:
    said = f"MLflow: {first_line(error)[:300]}"
    if status >= 500 or status in (401, 403, 408, 429) or "Max retries exceeded" in said:
        return Retry(said)
    if status == 404:
        return Reject("unknown-version", said)
    return None


def connect(settings: Settings) -> MlflowClient:
    """A client with short patience (MLflow's own defaults block a call for four minutes). Raises UserError."""
    if settings.mlflow_tracking_uri is None:
        raise UserError("no MLflow is known: `driftloop up` starts one here, or set MLFLOW_TRACKING_URI to your own")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    mlflow.set_tracking_uri(settings.mlflow_tracking_uri)
    return mlflow.MlflowClient(settings.mlflow_tracking_uri)


def registered_for(client: MlflowClient, model: str, event_id: str) -> ModelRegistered | None:
    """What was registered for an event, if anything was: the same event as the first time, with its signature.

    A version that a crash left unsigned is deleted: nobody knows any more whether its files are those of the training.
    """
    with world_may_fail():
        found = client.search_model_versions(f"name='{model}' and tags.`{EVENT_TAG}`='{event_id}'")
        for item in sorted(found, key=lambda item: int(item.version)):
            if SIGNATURE_TAG in item.tags:
                signature = json.loads(item.tags[SIGNATURE_TAG])
                return _with(item.tags[REGISTERED_TAG], version=str(item.version), **signature)
            client.delete_model_version(model, item.version)
    return None


def judged_before(client: MlflowClient, experiment: str, event_id: str, attempt: int) -> str | None:
    """The decision that a finished attempt at an event was recorded with, if it registered nothing. Raises Retry."""
    with world_may_fail():
        known = client.get_experiment_by_name(experiment)
        if known is None:
            return None
        query = (
            f"tags.`{EVENT_TAG}`='{event_id}' and tags.`{ATTEMPT_TAG}`='{attempt}' and attributes.status='FINISHED' "
            f"and tags.`{OUTCOME_TAG}`!='promoted'"
        )
        found = client.search_runs([known.experiment_id], query, max_results=1)
        return found[0].data.tags.get(DECISION_TAG) if found else None


def close_unfinished(client: MlflowClient, experiment: str, event_id: str) -> None:
    """Runs of an event that a crash left open are ended as FAILED."""
    with world_may_fail():
        known = client.get_experiment_by_name(experiment)
        if known is None:
            return
        query = f"tags.`{EVENT_TAG}`='{event_id}' and attributes.status='RUNNING'"
        for run in client.search_runs([known.experiment_id], query):
            client.set_terminated(run.info.run_id, "FAILED")


def signing_key(settings: Settings) -> SigningKey:
    """The key that registered models are signed with. Raises UserError."""
    if settings.signing_secret is not None:
        return key_from(settings.signing_secret.get_secret_value().encode(), "DRIFTLOOP_SIGNING_SECRET")
    if settings.signing_key is not None:
        try:
            return key_from(settings.signing_key.read_bytes(), str(settings.signing_key))
        except OSError as error:
            raise UserError(f"DRIFTLOOP_SIGNING_KEY={settings.signing_key}: {error.strerror}") from None
    return own_key(settings.home, settings.trusted_folder)


def register(
    client: MlflowClient, model: str, training: Training, winner: Winner, draft: ModelRegistered, key: SigningKey
) -> ModelRegistered:
    """Record the training, register the winner as challenger; the event that says so, signed. Raises Retry.

    draft: the event without version, run, digest and signature, which are only known now.
    """
    import mlflow

    with world_may_fail():
        mlflow.set_experiment(model)
        with mlflow.start_run(run_name=f"{model}-{training.event_id[:8]}", tags=_tags(training)) as run:
            _log(training)
            uri = _log_model(client, winner)
        with TemporaryDirectory() as folder:
            registered = msgspec.structs.replace(
                draft, run_id=run.info.run_id, digest=digest(download(client, uri, Path(folder)))
            )
        content = msgspec.json.encode(registered).decode()
        made = mlflow.register_model(uri, model, tags={EVENT_TAG: training.event_id, REGISTERED_TAG: content})
        signed = key.signed(_with(content, version=str(made.version)))
        signature = msgspec.json.encode({"signature": signed.signature, "key_id": signed.key_id}).decode()
        client.set_model_version_tag(model, made.version, SIGNATURE_TAG, signature)
        client.set_registered_model_alias(model, CHALLENGER, made.version)
    return signed


def record_rejected(training: Training, model: str) -> None:
    """Record a training whose winner was not good enough: runs and figures, no model. Raises Retry."""
    import mlflow

    with world_may_fail():
        mlflow.set_experiment(model)
        with mlflow.start_run(run_name=f"{model}-{training.event_id[:8]}", tags=_tags(training)):
            _log(training)


class _Profiled(msgspec.Struct):
    profile: str | None = None


def profile_of(client: MlflowClient, model: str, version: str) -> str | None:
    """Which file of a version is its reference profile, if it has one. Raises Retry; Reject `unknown-version`."""
    with world_may_fail():
        content = client.get_model_version(model, version).tags.get(REGISTERED_TAG)
    return None if content is None else msgspec.json.decode(content, type=_Profiled).profile


def download(client: MlflowClient, uri: str, into: Path) -> Path:
    """The folder, `into` or below it, with the model's files; uri: `models:/…`. Raises Retry."""
    import mlflow

    with world_may_fail():
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(into), tracking_uri=client.tracking_uri))


def artifact(client: MlflowClient, run_id: str, path: str) -> bytes:
    """A file of a run. Raises Retry; Reject `unknown-version` if there is no such run or file."""
    with world_may_fail(), TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, path, folder)).read_bytes()


def param(client: MlflowClient, run_id: str, name: str) -> str:
    """A parameter of a run. Raises Retry; Reject `unknown-version`."""
    with world_may_fail():
        found = client.get_run(run_id).data.params.get(name)
    if found is None:
        raise Reject("unknown-version", f"run {run_id} has no parameter {name}")
    return str(found)


def tag(client: MlflowClient, run_id: str, name: str) -> str | None:
    """A tag of a run, if it has it. Raises Retry; Reject `unknown-version`."""
    with world_may_fail():
        found = client.get_run(run_id).data.tags.get(name)
    return None if found is None else str(found)


def trusted_files(client: MlflowClient, settings: Settings, version: str, digest: str, into: Path) -> Path:
    """The folder, `into` or below it, with the files of a version that we or a trusted key have signed.

    Nothing of them was loaded. The signature is the one that the version carries in MLflow; it covers model, number and
    digest, so it does not matter who keeps it. Raises Retry; Reject as `check_signature` and `verify` do.
    """
    with world_may_fail():
        tags = client.get_model_version(settings.model, version).tags
    try:
        signature = json.loads(tags[SIGNATURE_TAG])
        registered = _with(tags[REGISTERED_TAG], **signature, model=settings.model, version=version, digest=digest)
    except (KeyError, TypeError, ValueError) as error:
        raise Reject("unsigned", f"version {version} carries no signature in MLflow") from error
    check_signature(registered, settings.trusted_folder, signing_key(settings))
    files = download(client, f"models:/{settings.model}/{version}", into)
    verify(files, digest)
    return files


def set_champion(client: MlflowClient, model: str, version: str, previous: str | None) -> None:
    """Aliases after a switch: `champion` serves, `previous` is the way back, `challenger` is gone. Raises Retry."""
    with world_may_fail():
        aliases = {name: str(number) for name, number in client.get_registered_model(model).aliases.items()}
        if aliases.get(CHAMPION) != version:
            client.set_registered_model_alias(model, CHAMPION, version)
        if previous is not None and aliases.get(PREVIOUS) != previous:
            client.set_registered_model_alias(model, PREVIOUS, previous)
        if aliases.get(CHALLENGER) == version:
            client.delete_registered_model_alias(model, CHALLENGER)


def _tags(training: Training) -> dict[str, str]:
    return training.tags | {
        EVENT_TAG: training.event_id,
        ATTEMPT_TAG: str(training.attempt),
        OUTCOME_TAG: training.outcome,
        DECISION_TAG: training.decision,
    }


def _log(training: Training) -> None:
    import mlflow

    mlflow.log_params(training.params)
    mlflow.log_dict(training.window, "window.json")
    for name, table in training.tables.items():
        mlflow.log_dict(table, f"{name}.json")
    for name, figure in training.figures.items():
        mlflow.log_figure(figure, f"figures/{name}.png")
    with TemporaryDirectory() as folder:
        for name, content in training.files.items():
            (Path(folder) / name).write_bytes(content)
        mlflow.log_artifacts(folder, "windows")
    for candidate in training.tried:
        with mlflow.start_run(run_name=candidate.name, nested=True, tags={EVENT_TAG: training.event_id}):
            mlflow.log_params(candidate.params)
            mlflow.log_metrics(candidate.metrics)


def _log_model(client: MlflowClient, winner: Winner) -> str:
    """The URI of the logged model, with what it must answer to the smoke test beside it."""
    import mlflow
    import pandas as pd

    frame = pd.DataFrame(winner.examples[:SMOKE_ROWS], columns=list(winner.columns))
    answers = winner.pipeline.predict(winner.examples[:SMOKE_ROWS])
    info = mlflow.sklearn.log_model(
        winner.pipeline,
        name="model",
        serialization_format="skops",
        skops_trusted_types=list(ALLOWED),
        signature=mlflow.models.infer_signature(frame, answers),
        input_example=frame.head(2),
        # Without explicit requirements MLflow loads the model in a subprocess to find them: 15 s.
        pip_requirements=[f"{name}=={installed(name)}" for name in _REQUIRED],
    )
    smoke = SmokeCases(
        columns=list(winner.columns),
        inputs=frame.to_numpy().tolist(),
        expected=answers.tolist(),
        probabilities=winner.pipeline.predict_proba(winner.examples[:SMOKE_ROWS]).tolist(),
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / SMOKE
        path.write_bytes(msgspec.json.encode(smoke))
        client.log_model_artifact(info.model_id, str(path))
        if winner.profile is not None:
            path = Path(folder) / PROFILE
            path.write_bytes(winner.profile)
            client.log_model_artifact(info.model_id, str(path))
    return f"models:/{info.model_id}"


def _with(content: str, **fields: str) -> ModelRegistered:
    return msgspec.convert({**json.loads(content), **fields}, ModelRegistered)
