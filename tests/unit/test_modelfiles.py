"""Nothing of a model runs before its bytes, its files and its types have been accepted."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import skops.io
import yaml
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from deploy import modelfiles
from schemas.errors import Reject
from workers.training import candidates

# As mlflow 3.17.2 writes it; tests/integration/test_process_target.py compares with the real one.
MLMODEL = {
    "flavors": {
        "python_function": {"loader_module": "mlflow.sklearn", "model_path": "model.skops", "predict_fn": "predict"},
        "sklearn": {
            "code": None,
            "pickled_model": "model.skops",
            "serialization_format": "skops",
            "skops_trusted_types": [],
        },
    }
}


CANDIDATES = [pipeline[-1] for _, pipeline in candidates(0)]


def fitted(estimator, features=3):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, features))
    labels = np.array(["wlk", "sit", "jog"])[rng.integers(0, 3, 60)]
    return make_pipeline(StandardScaler(), estimator).fit(rows, labels), rows[:5]


def write(folder: Path, estimator) -> Path:
    pipeline, rows = fitted(estimator)
    folder.mkdir()
    skops.io.dump(pipeline, folder / "model.skops")
    (folder / "MLmodel").write_text(yaml.safe_dump(MLMODEL))
    (folder / "requirements.txt").write_text("scikit-learn\n")
    smoke = {
        "columns": ["a", "b", "c"],
        "inputs": rows.tolist(),
        "expected": pipeline.predict(rows).tolist(),
        "probabilities": pipeline.predict_proba(rows).tolist(),
    }
    (folder / "smoke.json").write_text(json.dumps(smoke))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write(tmp_path_factory.mktemp("models") / "trained", LogisticRegression())


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "model")


def refused(reject_class, folder, digest=None):
    """The reason for which the folder is refused, with whatever digest it has unless one is given."""
    with pytest.raises(Reject) as caught:
        modelfiles.verify(folder, digest or modelfiles.digest(folder))
    assert caught.value.reject_class == reject_class
    return caught.value.reason


def edit(folder, section, **changes):
    mlmodel = yaml.safe_load((folder / "MLmodel").read_text())
    mlmodel["flavors"].setdefault(section, {}).update(changes)
    (folder / "MLmodel").write_text(yaml.safe_dump(mlmodel))


@pytest.mark.parametrize("estimator", CANDIDATES, ids=lambda estimator: type(estimator).__name__)
def test_every_candidate_survives_the_way_through_a_file(estimator, tmp_path):
    """An upgrade of skops or scikit-learn that needs another type must fail here, not at the first deployment."""
    folder = write(tmp_path / "model", estimator)
    modelfiles.verify(folder, modelfiles.digest(folder))
    cases = modelfiles.smoke_cases(folder)
    loaded = modelfiles.load(folder)
    assert loaded.predict(np.array(cases.inputs)).tolist() == cases.expected
    assert np.allclose(loaded.predict_proba(np.array(cases.inputs)), cases.probabilities)


def test_the_allow_list_holds_nothing_that_no_candidate_needs(tmp_path):
    """Each entry is a type whose crafted bytes may crash a process, so none is there in reserve."""
    needed = set()
    for estimator in CANDIDATES:
        needed.update(skops.io.get_untrusted_types(data=skops.io.dumps(fitted(estimator)[0])))
    assert needed == set(modelfiles.ALLOWED)


def test_the_digest_is_that_of_names_and_contents_and_nothing_else(folder, tmp_path):
    """A copy elsewhere, later, written in another order is the same model."""
    again = tmp_path / "copy"
    again.mkdir()
    for path in sorted(folder.iterdir(), reverse=True):
        (again / path.name).write_bytes(path.read_bytes())
    assert modelfiles.digest(again) == modelfiles.digest(folder)
    assert list(modelfiles.manifest(folder)) == ["MLmodel", "model.skops", "requirements.txt", "smoke.json"]
    (again / "requirements.txt").rename(again / "conda.yaml")
    assert modelfiles.digest(again) != modelfiles.digest(folder)


def test_what_mlflow_adds_to_a_download_does_not_change_the_digest(folder):
    """`models:/activity/7` arrives with a file that was never uploaded."""
    before = modelfiles.digest(folder)
    (folder / "registered_model_meta").write_text("model_name: activity\n")
    modelfiles.verify(folder, before)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda folder: (folder / "requirements.txt").write_text("scikit-learm\n"),
        lambda folder: (folder / "conda.yaml").write_text("{}"),
        lambda folder: (folder / "requirements.txt").unlink(),
        lambda folder: (folder / "MLmodel").rename(folder / "mlmodel"),
    ],
    ids=["changed byte", "extra file", "missing file", "renamed file"],
)
def test_files_other_than_the_registered_ones_are_refused(folder, tamper):
    """The digest comes from the event, the files from a store that others can write to."""
    registered = modelfiles.digest(folder)
    tamper(folder)
    assert registered in refused("digest-mismatch", folder, registered)


@pytest.mark.parametrize("name", ["helper.py", "model.pkl", "code/helper.py", "notes.txt"])
def test_a_file_that_no_model_needs_is_refused_even_with_its_digest(folder, name):
    """Whoever can also write events must still not get code beside the model."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("")
    assert name in refused("unsafe-model", folder)


@pytest.mark.parametrize("name", ["MLmodel", "model.skops", "smoke.json"])
def test_a_model_without_one_of_its_parts_is_refused_even_with_its_digest(folder, name):
    (folder / name).unlink()
    assert f"missing files: {name}" in refused("unsafe-model", folder)


def test_links_are_refused_wherever_they_lead(folder, tmp_path):
    """A link can name any file of this machine, or change after it was checked."""
    (tmp_path / "elsewhere").write_bytes((folder / "model.skops").read_bytes())
    (folder / "model.skops").unlink()
    (folder / "model.skops").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Reject, match=r"unsafe-model: model\.skops"):
        modelfiles.digest(folder)
    with pytest.raises(Reject, match=r"unsafe-model: model\.skops"):
        modelfiles.load(folder)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(Reject, match="unsafe-model"):
        modelfiles.manifest(tmp_path / "link")
    with pytest.raises(Reject, match="unsafe-model"):
        modelfiles.manifest(tmp_path / "nowhere")


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("with_digest", [True, False], ids=["digest known", "digest of the original"])
@pytest.mark.parametrize("name", ["model.pkl", "model.skops"])
def test_a_model_that_switched_to_pickle_is_refused_and_never_run(folder, tmp_path, name, with_digest):
    """MLflow itself runs this one with its default settings (GHSA-w582-9x45-8mpx)."""
    registered = modelfiles.digest(folder)
    (folder / "model.skops").unlink()
    (folder / name).write_bytes(pickle.dumps(Payload(tmp_path / "canary")))
    for format in ("pickle", "cloudpickle", "skops"):
        edit(folder, "sklearn", serialization_format=format, pickled_model=name)
        edit(folder, "python_function", model_path=name)
        refused(*(("unsafe-model", folder) if with_digest else ("digest-mismatch", folder, registered)))
        with pytest.raises(Reject, match="unsafe-model"):
            modelfiles.load(folder)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("sklearn", {"serialization_format": "pickle"}),
        ("sklearn", {"serialization_format": "cloudpickle"}),
        ("sklearn", {"serialization_format": None}),
        ("sklearn", {"code": "code"}),
        ("sklearn", {"pickled_model": "../model.skops"}),
        ("python_function", {"loader_module": "mlflow.pyfunc.model"}),
        ("python_function", {"code": "code"}),
        ("python_function", {"model_path": "/etc/passwd"}),
        ("python_function", {"data": "data"}),
        ("tensorflow", {}),
    ],
    ids=str,
)
def test_an_mlmodel_that_names_another_way_to_load_is_refused(folder, section, changes):
    """Others may load the same folder with MLflow after us."""
    edit(folder, section, **changes)
    assert "MLmodel" in refused("unsafe-model", folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "flavors: 3", "flavors: {sklearn: {}}", "a: [", "!!python/object:os.system {}"]
)
def test_an_mlmodel_that_is_none_is_refused(folder, text):
    (folder / "MLmodel").write_text(text)
    assert "MLmodel" in refused("unsafe-model", folder)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_the_models_own_list_of_trusted_types_is_never_believed(folder):
    """MLflow keeps that list inside the model, so it vouches for itself."""
    extra = "sklearn.neural_network._stochastic_optimizers.AdamOptimizer"
    skops.io.dump(fitted(MLPClassifier((2,), max_iter=1))[0], folder / "model.skops")
    edit(folder, "sklearn", skops_trusted_types=[extra])
    assert extra in refused("unsafe-model", folder)
    with pytest.raises(Reject, match="AdamOptimizer"):
        modelfiles.load(folder)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x05\x06" + bytes(18)], ids=["empty", "noise", "empty zip"])
def test_a_pipeline_that_is_no_skops_file_is_refused(folder, content):
    (folder / "model.skops").write_bytes(content)
    assert "model.skops" in refused("unsafe-model", folder)


def test_a_skops_file_that_holds_no_classifier_is_refused(folder):
    skops.io.dump(StandardScaler(), folder / "model.skops")
    with pytest.raises(Reject, match="not a fitted classifier"):
        modelfiles.load(folder)


@pytest.mark.parametrize(
    "changes",
    [{"expected": []}, {"inputs": [[1.0]]}, {"columns": ["a", "a", "b"]}, {"inputs": "x"}, {"extra": 1}],
    ids=str,
)
def test_stored_answers_that_do_not_fit_each_other_are_refused(folder, changes):
    """A smoke test without questions would pass every model."""
    (folder / "smoke.json").write_text(json.dumps(json.loads((folder / "smoke.json").read_text()) | changes))
    assert "smoke.json" in refused("unsafe-model", folder)
