"""Ways to slip something into a model's folder, for tests that must see each of them refused."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import skops.io
import yaml


class Payload:
    """Leaves a file behind when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def pickled(folder, canary):
    """The model itself is a pickle, and MLmodel says so."""
    (folder / "model.pkl").write_bytes(pickle.dumps(Payload(canary)))
    (folder / "model.skops").unlink()
    edited(folder, sklearn={"pickled_model": "model.pkl", "serialization_format": "cloudpickle"})


def edited(folder, **flavors):
    """MLmodel names another loader, or code of its own."""
    content = yaml.safe_load((folder / "MLmodel").read_text())
    for name, values in flavors.items():
        content["flavors"].setdefault(name, {}).update(values)
    (folder / "MLmodel").write_text(yaml.safe_dump(content))


def with_code(folder, canary):
    (folder / "code").mkdir()
    (folder / "code" / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    edited(folder, python_function={"code": "code"})


def with_loader(folder, canary):
    edited(folder, python_function={"loader_module": "evil"})


def with_file(folder, canary):
    (folder / "sitecustomize.py").write_text(f"open({str(canary)!r}, 'w')")


def with_type(folder, canary):
    skops.io.dump({"payload": Path("x"), "function": shutil.copyfile}, folder / "model.skops")


def with_byte(folder, canary):
    content = bytearray((folder / "model.skops").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.skops").write_bytes(content)


TAMPERING = {
    "pickle": pickled,
    "code path": with_code,
    "edited MLmodel": with_loader,
    "extra file": with_file,
    "foreign type": with_type,
    "changed byte": with_byte,
}
