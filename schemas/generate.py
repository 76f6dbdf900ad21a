"""`python -m schemas.generate` writes what `schemas.contracts` renders; `--check` names what differs and exits 1.

A golden file is what consumers have on their topics already, so one that exists is never written again.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Final

from schemas.contracts import generated_files, golden_files, metrics_table, settings_table, topics_table

ROOT = Path(__file__).parent.parent
_TABLES: Final = {"topics": topics_table, "settings": settings_table, "metrics": metrics_table}


def differing(root: Path = ROOT) -> list[str]:
    """What is wrong with the files under a checkout's root, a line each; nothing if all are as the code says."""
    schemas = root / "schemas"
    generated = generated_files()
    wrong = [
        f"{schemas / name}: not what the code says; run `make contracts`"
        for name, text in generated.items()
        if _text(schemas / name) != text
    ]
    wrong += [
        f"{path}: no type of this name; a version that was sent once keeps its schema and its type"
        for path in sorted((schemas / "json").glob("*.json"))
        if f"json/{path.name}" not in generated
    ]
    if _text(root / "README.md") != _readme(root):
        wrong.append(f"{root / 'README.md'}: its tables are not what the code says; run `make contracts`")
    for name, text in golden_files().items():
        path = _golden_folder(root) / name
        now = _text(path)
        if now is None:
            wrong.append(f"{path}: missing; run `make contracts`")
        elif now != text:
            wrong.append(f"{path}: this version is out already and must not change; make a new version of the event")
    return wrong


def write(root: Path = ROOT) -> list[Path]:
    """Writes the generated files and the golden files that do not exist yet; the paths that changed."""
    schemas, golden = root / "schemas", _golden_folder(root)
    wanted = {schemas / name: text for name, text in generated_files().items()}
    wanted |= {golden / name: text for name, text in golden_files().items() if not (golden / name).exists()}
    if (readme := _readme(root)) is not None:
        wanted[root / "README.md"] = readme
    changed = {path: text for path, text in wanted.items() if _text(path) != text}
    for path, text in changed.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(changed)


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 if all files are as the code says (now), 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m schemas.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, name what differs")
    if not parser.parse_args(arguments).check:
        for path in write():
            sys.stdout.write(f"wrote {path}\n")
    wrong = differing()
    sys.stderr.writelines(f"{line}\n" for line in wrong)
    return 1 if wrong else 0


def _readme(root: Path) -> str | None:
    """The README with its generated tables as the code says, if there is one."""
    text = _text(root / "README.md")
    if text is None:
        return None
    for name, table in _TABLES.items():
        between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
        text = between.sub(table().replace("\\", r"\\"), text)
    return text


def _golden_folder(root: Path) -> Path:
    return root / "tests" / "contract" / "golden"


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
