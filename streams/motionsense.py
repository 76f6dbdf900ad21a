"""The MotionSense recordings (device-motion part) from the public download's own layout, zip or folder.

`A_DeviceMotion_data/<activity>_<trial>/sub_<subject>.csv` at 50 Hz; the trial number is the order in which a subject
performed them. Malekzadeh et al., IoTDI 2019; github.com/mmalekzadeh/motion-sense, MIT licence. The data is not ours
to ship: it is read from where a person has it.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from schemas.activity import ACTIVITIES, CHANNEL_NAMES, SAMPLE_RATE_HZ, Activity
from schemas.errors import UserError
from streams.recording import Person, Recording
from streams.windows import LABEL_CODES, Floats

DATA_FOLDER: Final = "A_DeviceMotion_data"
PEOPLE_FILE: Final = "data_subjects_info.csv"
# The subjects walked to the next place between trials; the files do not say for how long.
GAP_SECONDS: Final = 5.0
_WHERE: Final = "get A_DeviceMotion_data.zip from github.com/mmalekzadeh/motion-sense and give its path"
_FILE: Final = re.compile(rf"(?:.*/)?({'|'.join(ACTIVITIES)})_(\d+)/sub_(\d+)\.csv")


@dataclass(frozen=True, slots=True)
class _Trial:
    number: int
    activity: Activity
    name: str


def parse_subjects(text: str) -> list[int]:
    """Subject numbers of a list such as `1-6,9`, ascending, each once. Raises UserError with an example."""
    subjects: set[int] = set()
    for part in text.split(","):
        matched = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)
        first, last = (int(matched[1]), int(matched[2] or matched[1])) if matched else (1, 0)
        if first > last:
            raise UserError(f"subjects {text!r}: write numbers and ranges, as in 1-6,9")
        subjects.update(range(first, last + 1))
    return sorted(subjects)


def recordings(path: Path, subjects: Collection[int] | None = None, start_ts: float = 0.0) -> list[Recording]:
    """One recording for each subject (all of them for None), trials in the order performed, all beginning at start_ts.

    path: the zip, the folder A_DeviceMotion_data, or the folder that holds it. Subject 7 carries `phone-07`. Readings
    are 20 ms apart, trials 5 s. Raises UserError in one line if path is missing, something else, or damaged, or lacks a
    subject.
    """
    with _opened(path) as (names, read):
        trials: dict[int, list[_Trial]] = {}
        for name in names:
            matched = _FILE.fullmatch(name)
            if matched and "__MACOSX" not in name:
                number, subject = int(matched[2]), int(matched[3])
                activity = next(activity for activity in ACTIVITIES if activity == matched[1])
                trials.setdefault(subject, []).append(_Trial(number, activity, name))
        if not trials:
            raise UserError(f"{path}: no <activity>_<trial>/sub_<n>.csv of MotionSense in it; {_WHERE}")
        wanted = sorted(trials if subjects is None else set(subjects))
        unknown = [subject for subject in wanted if subject not in trials]
        if unknown:
            raise UserError(f"{path}: no subject {', '.join(map(str, unknown))}; choose from {_ranges(sorted(trials))}")
        people = _people(path)
        return [
            _recording(
                subject,
                people.get(subject, Person(str(subject))),
                [(trial, _values(path, trial.name, read)) for trial in sorted(trials[subject], key=lambda t: t.number)],
                start_ts,
            )
            for subject in wanted
        ]


def _recording(subject: int, person: Person, parts: list[tuple[_Trial, Floats]], start_ts: float) -> Recording:
    lengths = [len(values) for _, values in parts]
    # Each trial begins a gap after the one before it has ended.
    rows = np.arange(sum(lengths)) + np.repeat(np.arange(len(parts)) * round(GAP_SECONDS * SAMPLE_RATE_HZ), lengths)
    return Recording(
        f"phone-{subject:02d}",
        person,
        start_ts + rows / SAMPLE_RATE_HZ,
        np.concatenate([values for _, values in parts]),
        np.repeat([LABEL_CODES[trial.activity] for trial, _ in parts], lengths),
        np.repeat([trial.number for trial, _ in parts], lengths),
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """The names of all files at path, and how to read one."""
    if path.is_dir():
        root = path / DATA_FOLDER if (path / DATA_FOLDER).is_dir() else path
        yield (
            sorted(file.relative_to(root).as_posix() for file in root.glob("*/sub_*.csv")),
            lambda name: (root / name).read_bytes(),
        )
        return
    if not path.exists():
        raise UserError(f"{path}: not there; {_WHERE}")
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: neither a folder nor a readable zip ({error}); {_WHERE}") from error
    with archive:
        yield archive.namelist(), archive.read


def _values(path: Path, name: str, read: Callable[[str], bytes]) -> Floats:
    """(n, 12) of one file, columns as in `schemas.activity.CHANNEL_NAMES` whatever their order in the file."""
    try:
        text = read(name).decode()
        header = [column.strip().strip('"') for column in text.partition("\n")[0].split(",")]
        columns = [header.index(channel) for channel in CHANNEL_NAMES]
        values = np.loadtxt(io.StringIO(text), delimiter=",", skiprows=1, usecols=columns, ndmin=2)
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: {name} is damaged ({_line(error)}); download it again") from error
    if not len(values) or not np.isfinite(values).all():
        raise UserError(f"{path}: {name} is damaged (empty, or a value is not finite); download it again")
    return values


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _people(path: Path) -> dict[int, Person]:
    """Who the subjects are, if the file that says so lies beside the zip, in the folder or in its parent."""
    for folder in (path, path.parent) if path.is_dir() else (path.parent,):
        file = folder / PEOPLE_FILE
        if file.is_file():
            return _read_people(file)
    return {}


def _read_people(file: Path) -> dict[int, Person]:
    people = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:  # the file begins with a byte order mark
            for row in csv.DictReader(lines):
                subject = int(row["code"])
                weight, height, age = (float(row[name]) for name in ("weight", "height", "age"))
                people[subject] = Person(str(subject), weight, height, age, int(row["gender"]))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{file}: damaged ({error!r}); download it again, or remove it: it is optional") from error
    return people


def _ranges(numbers: list[int]) -> str:
    """`1-6, 9` for 1, 2, 3, 4, 5, 6, 9."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
