"""A model's folder: what may be in it, its digest, and the only way from its bytes to a pipeline.

MLflow keeps the list of trusted types, and the choice between skops and pickle, inside the model itself, so whoever
can edit the folder decides what runs. Here neither is believed: the digest comes from the event, the types from
ALLOWED.
"""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from schemas.errors import Reject

# What skops 0.16 does not trust by itself in the estimators that we train, and nothing more (skops #535: a tree's nodes
# can crash the process). Logistic regression, Gaussian NB, StandardScaler and Pipeline need none. kNN needs its two
# only up to 15 features, beyond which scikit-learn searches by brute force.
ALLOWED: Final = (
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.tree._tree.Tree",
)
PIPELINE: Final = "model.skops"
PROFILE: Final = "profile.json"  # the agent's reference; serving does not read it
SMOKE: Final = "smoke.json"
REQUIRED: Final = frozenset({"MLmodel", PIPELINE, SMOKE})
FILES: Final = REQUIRED | {
    PROFILE,
    "conda.yaml",
    "input_example.json",
    "python_env.yaml",
    "requirements.txt",
    "serving_input_example.json",
}
# MLflow's client adds this beside the files of a download from `models:/name/version`; it was never uploaded.
ADDED_BY_DOWNLOAD: Final = "registered_model_meta"


class SmokeCases(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a model answered when it was trained: `smoke.json`.

    columns: k feature names in the pipeline's order. inputs: (n, k), n ≥ 1. expected: n labels.
    probabilities: (n, c), columns in the order of the pipeline's classes_.
    """

    columns: list[str]
    inputs: list[list[float]]
    expected: list[str]
    probabilities: list[list[float]]


def manifest(folder: Path) -> dict[str, str]:
    """SHA-256 in hex of every file in the folder, by posix path in sorted order, without ADDED_BY_DOWNLOAD.

    Raises Reject: `unsafe-model` for whatever is neither a file nor a folder, symbolic links above all.
    """
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in _files(folder)}


def digest(folder: Path) -> str:
    """`sha256:` and the SHA-256 of the manifest as JSON with sorted keys and no spaces. Raises as `manifest` does."""
    canonical = json.dumps(manifest(folder), sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def verify(folder: Path, expected_digest: str) -> None:
    """Returns if the folder holds exactly the files that were registered and loading them is safe.

    Raises Reject: `digest-mismatch` (a byte changed, a file too many or too few), `unsafe-model` (links, unexpected or
    missing files, another loader or format than scikit-learn on skops, code of its own, a type outside ALLOWED).
    """
    found = digest(folder)
    if found != expected_digest:
        raise Reject("digest-mismatch", f"the model's files have digest {found}, registered was {expected_digest}")
    _checked_bytes(folder)


def load(folder: Path) -> Any:
    """The fitted pipeline of a folder that `verify` has passed. Raises Reject: `unsafe-model`, as `verify` does."""
    import skops.io

    content = _checked_bytes(folder)
    try:
        pipeline = skops.io.loads(content, trusted=list(ALLOWED))
    except Exception as error:  # a foreign format raises what it likes; all of it means: not a model
        raise _unsafe(f"{PIPELINE} cannot be loaded: {error}") from error
    lacking = [
        name for name in ("predict", "predict_proba", "classes_", "n_features_in_") if not hasattr(pipeline, name)
    ]
    if lacking:
        raise _unsafe(f"{PIPELINE} is not a fitted classifier: it has no {', '.join(lacking)}")
    return pipeline


def smoke_cases(folder: Path) -> SmokeCases:
    """The folder's stored answers. Raises Reject: `unsafe-model` if they are missing or do not fit each other."""
    try:
        cases = msgspec.json.decode((folder / SMOKE).read_bytes(), type=SmokeCases)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _unsafe(f"{SMOKE}: {error}") from error
    rows = len(cases.inputs)
    if not rows or len(cases.expected) != rows or len(cases.probabilities) != rows:
        raise _unsafe(f"{SMOKE}: inputs, expected and probabilities must be equally many, and at least one")
    if any(len(row) != len(cases.columns) for row in cases.inputs) or len(set(cases.columns)) != len(cases.columns):
        raise _unsafe(f"{SMOKE}: every row of inputs needs one value for each of the distinct columns")
    return cases


def _unsafe(reason: str) -> Reject:
    return Reject("unsafe-model", reason)


def _files(folder: Path) -> list[tuple[str, Path]]:
    """Every regular file below the folder with its posix path, sorted; links are refused, never followed."""
    found: list[tuple[str, Path]] = []
    if not stat.S_ISDIR(_mode(folder)):
        raise _unsafe(f"{folder} is not a folder")
    unvisited = [folder]
    while unvisited:
        for path in unvisited.pop().iterdir():
            name, mode = path.relative_to(folder).as_posix(), _mode(path)
            if stat.S_ISDIR(mode):
                unvisited.append(path)
            elif not stat.S_ISREG(mode):
                raise _unsafe(f"{name} is neither a file nor a folder")
            elif name != ADDED_BY_DOWNLOAD:
                found.append((name, path))
    return sorted(found)


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        raise _unsafe(f"{path} does not exist") from None


def _checked_bytes(folder: Path) -> bytes:
    """The bytes of the pipeline, after every check that needs no digest. Raises Reject: `unsafe-model`."""
    names = {name for name, _ in _files(folder)}
    if unexpected := names - FILES:
        raise _unsafe(f"unexpected files: {', '.join(sorted(unexpected))}")
    if missing := REQUIRED - names:
        raise _unsafe(f"missing files: {', '.join(sorted(missing))}")
    _check_mlmodel(folder / "MLmodel")
    smoke_cases(folder)
    content = (folder / PIPELINE).read_bytes()
    _check_types(content)
    return content


def _check_mlmodel(path: Path) -> None:
    """Refuses an MLmodel that would make MLflow load anything but one skops file of scikit-learn."""
    try:
        flavors = yaml.safe_load(path.read_bytes())["flavors"]
        generic, sklearn = dict(flavors["python_function"]), dict(flavors["sklearn"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise _unsafe(f"MLmodel is not one of a scikit-learn model: {error!r}") from error
    if other := set(flavors) - {"python_function", "sklearn"}:
        raise _unsafe(f"MLmodel has flavors {', '.join(map(str, sorted(other, key=str)))}; only scikit-learn is served")
    wanted = (
        ("python_function.loader_module", generic.get("loader_module"), "mlflow.sklearn"),
        ("python_function.model_path", generic.get("model_path"), PIPELINE),
        ("python_function.code", generic.get("code"), None),
        ("python_function.data", generic.get("data"), None),
        ("sklearn.serialization_format", sklearn.get("serialization_format"), "skops"),
        ("sklearn.pickled_model", sklearn.get("pickled_model"), PIPELINE),
        ("sklearn.code", sklearn.get("code"), None),
    )
    for key, found, only in wanted:
        if found != only:
            raise _unsafe(f"MLmodel: {key} is {found!r}, only {only!r} is accepted")


def _check_types(content: bytes) -> None:
    import skops.io

    try:
        types = set(skops.io.get_untrusted_types(data=content))
    except Exception as error:  # as in `load`
        raise _unsafe(f"{PIPELINE} cannot be read: {error}") from error
    if extra := types - set(ALLOWED):
        raise _unsafe(f"{PIPELINE} contains types that are not allowed: {', '.join(sorted(extra))}")
