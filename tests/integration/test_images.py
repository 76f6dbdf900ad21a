"""Model images on a real engine and a real registry with TLS and a password: what is pushed is what was meant."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import contextmanager

import pytest
import trustme

from deploy import modelfiles
from deploy.image import layer as layers
from deploy.image.append import AppendBuilder
from deploy.image.engine import EngineBuilder, Runtime, push
from deploy.image.registry import Registry
from deploy.target import DeploymentSpec
from schemas.errors import Reject, Retry
from tests import engine as engines
from tests.places import write_model

pytestmark = pytest.mark.timeout(900)  # the first time, the engine's images have to be made


@pytest.fixture(scope="module")
def engine(needs):
    needs(not engines.lacking(), engines.lacking())
    with engines.engine() as engine:
        yield engine
        for image in engine.images.list(filters={"label": f"{layers.MODEL_LABEL}=images"}):
            engine.images.remove(image.id, force=True)


@contextmanager
def registry_in(folder, **given):
    """A registry over the images that the tests keep."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    data = engines.HOME / "registry"
    with engines.registry(folder, login=True, ca=authority, data=data, **given) as address:
        yield Registry(
            repository=f"{address}/driftloop/models",
            auth="basic",
            username=engines.USER,
            password=engines.PASSWORD,
            ca=folder / "ca.pem",
        )


@pytest.fixture(scope="module")
def registry(engine, tmp_path_factory):
    """A registry with the tests' runtime image in it."""
    with registry_in(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(scope="module")
def runtime(engine, registry):
    """The runtime image's digest in the registry."""
    return Runtime(engine, engines.BASE).push(registry).partition("@")[2]


@pytest.fixture
def spec(tmp_path):
    folder = write_model(tmp_path / "model", time.time_ns() % 2**32)
    return DeploymentSpec("images", "7", modelfiles.digest(folder), folder, run_id="run-1", cause="drift-1")


def test_the_same_model_gives_the_same_digest_wherever_it_is_built(registry, runtime, spec, tmp_path):
    """Whoever has model and runtime image can check that an image is made of them and of nothing else."""
    first = AppendBuilder(registry, runtime).build(spec)
    assert AppendBuilder(registry, runtime).build(spec) == first, "adopted"
    registry.delete(first.partition("@")[2])
    assert registry.find(layers.tag(spec)) is None
    copy = shutil.copytree(spec.folder, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    again = DeploymentSpec("images", "7", spec.digest, copy, run_id="run-1", cause="drift-1")
    assert AppendBuilder(registry, runtime).build(again) == first


def test_an_image_that_may_not_be_deleted_is_kept(registry, runtime, spec, tmp_path):
    """A registry deletes nothing by default; a deploy worker that insists would do nothing else any more."""
    image = AppendBuilder(registry, runtime).build(spec)
    with registry_in(tmp_path, deletes=False) as strict:
        strict.delete(image.partition("@")[2])
        assert strict.find(layers.tag(spec)) is not None
        strict.delete("sha256:" + "0" * 64)


def test_both_builders_make_an_image_that_serves_the_model(engine, registry, runtime, spec):
    """Which builder is used is a matter of what is there, not of what comes out."""
    appended = AppendBuilder(registry, runtime).build(spec)
    registry.delete(appended.partition("@")[2])
    built = EngineBuilder(engine, Runtime(engine, engines.BASE), registry).build(spec)
    found = [registry.find(image.partition("@")[2]) for image in (built,)]
    for image in found:
        assert image is not None
        assert image.config["config"]["Cmd"] == layers.command(spec)
        assert image.config["config"]["User"] == "65532:65532"
        labels = {name: value for name, value in image.labels.items() if name != layers.RUNTIME_LABEL}
        assert labels == layers.labels(spec)
        assert engines.PASSWORD not in json.dumps(image.config)


def test_what_an_event_says_is_never_an_instruction_of_the_build(engine, tmp_path):
    """Run and cause are not signed: whoever can write to Kafka could otherwise have the image made as they like."""
    folder = write_model(tmp_path / "model", time.time_ns() % 2**32)
    foreign = {"run_id": 'r" x="y\nUSER 0\nRUN touch /evil', "cause": "$PATH\\"}
    spec = DeploymentSpec("images", "9", modelfiles.digest(folder), folder, **foreign)
    image = engine.images.get(EngineBuilder(engine, Runtime(engine, engines.BASE)).build(spec))
    config = image.attrs["Config"]
    assert config["User"] == "65532:65532"
    assert config["Cmd"] == layers.command(spec)
    assert {name: value for name, value in config["Labels"].items() if name != layers.RUNTIME_LABEL} == layers.labels(
        spec
    )
    assert config["Labels"]["io.driftloop.drift-event"] == "_PATH_"


def test_a_push_after_a_crash_finds_what_was_pushed_before(engine, registry, runtime, spec):
    """A worker that is killed between push and commit does everything again."""
    before = EngineBuilder(engine, Runtime(engine, engines.BASE), registry).build(spec)
    assert EngineBuilder(engine, Runtime(engine, engines.BASE), registry).build(spec) == before
    assert AppendBuilder(registry, runtime).build(spec) == before


def test_a_tag_is_never_moved_to_another_model(engine, registry, runtime, spec, tmp_path):
    """Whoever has pulled by tag would get something else without noticing."""
    AppendBuilder(registry, runtime).build(spec)
    folder = write_model(tmp_path / "other", 8)
    other = DeploymentSpec("images", "7", modelfiles.digest(folder), folder)
    taken = pytest.MonkeyPatch()
    with taken.context() as patch:
        patch.setattr(layers, "tag", lambda _: f"{spec.label}-{spec.digest[7:19]}")
        for builder in (AppendBuilder(registry, runtime), EngineBuilder(engine, runtime, registry)):
            with pytest.raises(Reject, match="tag-taken"):
                builder.build(other)


def test_files_that_are_not_the_digest_s_never_become_an_image(registry, runtime, spec):
    """The layer is packed from the very bytes that were checked."""
    (spec.folder / "requirements.txt").write_text("foreign\n")
    with pytest.raises(Reject, match="digest-mismatch"):
        AppendBuilder(registry, runtime).build(spec)
    assert registry.find(layers.tag(spec)) is None


def test_a_push_that_the_registry_refuses_is_an_error(engine, registry, spec, runtime):
    """The engine itself only mentions it in a stream, and goes on."""
    nobody = Registry(
        repository=registry.repository, auth="basic", username=engines.USER, password="wrong", ca=registry.ca
    )
    engine.images.get(engines.BASE).tag(registry.repository, "refused")
    with pytest.raises(Retry, match=registry.host):
        push(engine, nobody, "refused")
    with pytest.raises(Retry, match=registry.host):
        nobody.find("refused")
    with pytest.raises(Retry, match=registry.host):
        AppendBuilder(nobody, runtime).build(spec)
    engine.images.remove(f"{registry.repository}:refused")


def test_a_registry_that_is_away_is_waited_for(runtime, spec):
    away = Registry(repository="127.0.0.1:1/driftloop/models")
    with pytest.raises(Retry, match=r"127\.0\.0\.1:1"):
        AppendBuilder(away, runtime).build(spec)


def test_forgetting_an_image_twice_is_no_error(registry, runtime, spec):
    """A crash between deleting and remembering that it was deleted."""
    builder = AppendBuilder(registry, runtime)
    image = builder.build(spec)
    builder.forget(image)
    builder.forget(image)
    assert registry.find(layers.tag(spec)) is None


def test_the_runtime_image_runs_as_nobody_and_stops_at_once(engine):
    """As its first process the scoring server gets the engine's signals itself."""
    config = engine.images.get(Runtime(engine, engines.BASE).image()).attrs["Config"]
    assert config["User"] == "65532:65532"
    assert "/ping" in " ".join(config["Healthcheck"]["Test"])
