"""Six ways to slip something into service: each is refused before anything of it is loaded, with a decision."""

from __future__ import annotations

import msgspec
import pytest

from deploy import modelfiles
from deploy.trust import own_key
from schemas.envelope import envelope
from schemas.events import DecisionMade, ModelRegistered, TrainingWindow
from schemas.settings import Settings
from tests.places import write_model
from tests.tampering import TAMPERING
from workers import deploy
from workers.deploy import Deployer
from workers.health import Health


class Target:
    """Nothing may ever be created."""

    name = "process"

    def create(self, spec):
        raise AssertionError(f"{spec} was let through")

    def find(self, model, version):
        return None


@pytest.fixture
def deployer(tmp_path, monkeypatch):
    settings = Settings(_env_file=None, home=tmp_path)
    deployer = Deployer(settings, Health("deploy"), Target(), None)
    deployer.known = True
    deployer.files = write_model(tmp_path / "registry", 1)
    monkeypatch.setattr(deploy.registry, "download", lambda *_: deployer.files)
    deployer.signed = own_key(tmp_path, settings.trusted_folder).signed
    return deployer


def registered(deployer):
    """As the retrain worker announces what it has just stored."""
    return ModelRegistered(
        model="activity",
        version="3",
        run_id="run",
        winner="w",
        candidates=[],
        window=TrainingWindow(topic="activity", ranges=[], rows=0, sha256=""),
        digest=modelfiles.digest(deployer.files),
        caused_by=["drift"],
    )


def decision(deployer, event):
    told = envelope(event, id="registered", source="test", subject="", time=1.0)
    (output,) = deployer._roll_out(told, told, lambda: False)
    made = output.event.event
    assert isinstance(made, DecisionMade)
    assert (made.about, made.outcome) == ("deploy", "refused")
    return made.reason


def test_an_untouched_model_gets_as_far_as_the_target(deployer):
    """Else the refusals below would prove nothing."""
    with pytest.raises(AssertionError, match="was let through"):
        decision(deployer, deployer.signed(registered(deployer)))


@pytest.mark.parametrize("tampered", TAMPERING)
def test_files_that_were_changed_after_signing_are_refused(deployer, tampered, tmp_path):
    """Whoever can write to MLflow's store."""
    event = deployer.signed(registered(deployer))
    TAMPERING[tampered](deployer.files, tmp_path / "canary")
    assert decision(deployer, event) == "digest-mismatch"
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("tampered", TAMPERING)
def test_an_event_that_was_changed_with_the_files_is_refused(deployer, tampered, tmp_path):
    """Whoever can write to MLflow and to Kafka, but has not the key."""
    event = deployer.signed(registered(deployer))
    TAMPERING[tampered](deployer.files, tmp_path / "canary")
    forged = msgspec.structs.replace(event, digest=modelfiles.digest(deployer.files))
    assert decision(deployer, forged) == "bad-signature"
    assert decision(deployer, msgspec.structs.replace(forged, signature=None, key_id=None)) == "unsigned"
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("tampered", sorted(TAMPERING.keys() - {"changed byte"}))
def test_what_must_not_be_loaded_is_refused_even_if_it_is_signed(deployer, tampered, tmp_path):
    """A retrain worker that was taken over signs whatever it is told to."""
    TAMPERING[tampered](deployer.files, tmp_path / "canary")
    assert decision(deployer, deployer.signed(registered(deployer))) == "unsafe-model"
    assert not (tmp_path / "canary").exists()


def test_an_older_version_s_files_under_a_new_number_are_refused(deployer):
    """A valid signature of yesterday must not bring yesterday's model back."""
    event = deployer.signed(registered(deployer))
    assert decision(deployer, msgspec.structs.replace(event, version="9")) == "bad-signature"
