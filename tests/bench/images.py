"""How long a model's image takes, the runtime image being there: both builders, and a registry with TLS."""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import trustme

from deploy import modelfiles
from deploy.image.append import AppendBuilder
from deploy.image.engine import EngineBuilder, Runtime, push
from deploy.image.layer import tag
from deploy.image.registry import Registry
from deploy.target import DeploymentSpec
from tests import engine as engines
from tests.bench.report import Measurement, parser, show
from tests.places import write_model


def image_seconds(engine: Any, images: int = 5) -> dict[str, float]:
    """Medians over so many images: built by the engine, pushed, and appended in the registry without Docker."""
    runtime = Runtime(engine, engines.BASE)
    with tempfile.TemporaryDirectory() as name:
        folder, authority = Path(name), trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        with engines.registry(folder, login=True, ca=authority, data=engines.HOME / "registry") as address:
            registry = Registry(
                repository=f"{address}/driftloop/models",
                auth="basic",
                username=engines.USER,
                password=engines.PASSWORD,
                ca=folder / "ca.pem",
            )
            pushed = runtime.push(registry).partition("@")[2]
            times: dict[str, list[float]] = {"image_build_s": [], "image_push_s": [], "image_append_s": []}
            for number in range(images):
                files = write_model(folder / f"model-{number}", 100 + number)
                spec = DeploymentSpec("bench", str(100 + number), modelfiles.digest(files), files)
                began = time.perf_counter()
                image = EngineBuilder(engine, runtime).build(spec)
                built = time.perf_counter()
                engine.images.get(image).tag(registry.repository, tag(spec))
                push(engine, registry, tag(spec))
                done = time.perf_counter()
                times["image_build_s"].append(built - began)
                times["image_push_s"].append(done - built)
                again = DeploymentSpec("bench", str(200 + number), spec.digest, files)
                began = time.perf_counter()
                AppendBuilder(registry, pushed).build(again)
                times["image_append_s"].append(time.perf_counter() - began)
                engine.images.remove(image, force=True)
    return {name: float(np.median(each)) for name, each in times.items()}


def main() -> None:
    """Measure on the tests' own engine; nothing on a machine that cannot have one."""
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=int, default=5)
    given = arguments.parse_args()
    if lacking := engines.lacking():
        print(f"images are not measured: this machine lacks {lacking}")
        return
    with engines.engine() as engine:
        figures = image_seconds(engine, given.images)
    show(Measurement("images", {"images": given.images}, figures), given.json)


if __name__ == "__main__":
    main()
