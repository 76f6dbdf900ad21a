"""The reader of MotionSense's public layout, on made-up files; on the real ones where they are at hand."""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from schemas.activity import ACTIVITIES, CHANNEL_NAMES, CHANNELS, GRAVITY
from schemas.errors import UserError
from streams.motionsense import parse_subjects, recordings
from streams.recording import Person, spans
from streams.windows import complete_gravity

REAL = Path(
    os.environ.get("DRIFTLOOP_MOTIONSENSE") or Path(__file__).parents[2].parent / "shared" / "data" / "motionsense"
)
PEOPLE = "\ufeffcode,weight,height,age,gender\n7,72,178.5,35,1\n"


def csv(rows, *, start=0.0, names=CHANNEL_NAMES):
    """A file as published: an unnamed index column, then a column for each channel; a value tells row and channel."""
    value = {name: start + column / 100 for column, name in enumerate(CHANNEL_NAMES)}
    lines = [",".join([str(row), *(f"{value.get(name, 0.5) + row:.6f}" for name in names)]) for row in range(rows)]
    return "\n".join([",".join(["", *names]), *lines, ""])


FILES = {
    "dws_11/sub_7.csv": csv(100),
    "wlk_15/sub_7.csv": csv(60, start=2000),
    "ups_3/sub_7.csv": csv(80, start=1000),
    "sit_5/sub_12.csv": csv(50),
}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "A_DeviceMotion_data"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / ".DS_Store").write_bytes(b"\0")
    return tmp_path


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name, text in FILES.items():
            file.writestr(f"A_DeviceMotion_data/{name}", text)
        file.writestr("__MACOSX/A_DeviceMotion_data/dws_1/._sub_7.csv", b"\0")
        file.writestr("__MACOSX/A_DeviceMotion_data/jog_9/sub_7.csv", b"\0")
        file.writestr("A_DeviceMotion_data/.DS_Store", b"\0")
    return path


def test_zip_and_folders_give_the_same_recordings(folder, archive):
    """People unpack it or not, and point at either folder."""
    read = [recordings(path, None, 100.0) for path in (archive, folder, folder / "A_DeviceMotion_data")]
    for one in read:
        assert [recording.device for recording in one] == ["phone-07", "phone-12"]
        np.testing.assert_array_equal(one[0].values, read[0][0].values)


def test_trials_come_in_the_order_performed_with_a_gap_between(folder):
    """A window must not mix the end of one activity with the beginning of another hours later."""
    recording = recordings(folder, [7], 100.0)[0]
    assert recording.ts[0] == 100.0
    assert [int(recording.trials[start]) for start, _ in spans(recording.trials, recording.labels)] == [3, 11, 15]
    assert [ACTIVITIES[recording.labels[row]] for row in (0, 80, 180)] == ["ups", "dws", "wlk"]
    steps = np.diff(recording.ts)
    assert np.flatnonzero(steps > 1).tolist() == [79, 179]
    np.testing.assert_allclose(np.delete(steps, [79, 179]), 0.02)
    np.testing.assert_allclose(recording.values[80], np.arange(12) / 100)


def test_columns_are_found_by_name(tmp_path):
    """The public files order channels differently from one part of the data set to another."""
    (tmp_path / "wlk_7").mkdir()
    (tmp_path / "wlk_7" / "sub_1.csv").write_text(csv(3, names=[*CHANNEL_NAMES[::-1], "other"]))
    np.testing.assert_allclose(recordings(tmp_path)[0].values[1], 1 + np.arange(12) / 100)


@pytest.mark.parametrize("beside", [".", "A_DeviceMotion_data"])
def test_who_the_people_are_is_known_where_the_file_says_so(folder, archive, beside):
    """weight and height travel with the readings; the file is optional and begins with a byte order mark."""
    assert recordings(folder, [7])[0].person == Person("7")
    (folder / beside / "data_subjects_info.csv").write_text(PEOPLE, encoding="utf-8")
    known, unknown = recordings(folder / "A_DeviceMotion_data")
    assert known.person == Person("7", 72.0, 178.5, 35.0, 1)
    assert unknown.person == Person("12")
    if beside == ".":
        assert recordings(archive, [7])[0].person == known.person


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: text[: len(text) // 2 + 3], "damaged"),
        (lambda text: text.replace("0.000000", "n/a", 1), "damaged"),
        (lambda text: text.replace("0.000000", "nan", 1), "damaged"),
        (lambda text: text.replace("gravity.x", "gravity.w"), "gravity.x"),
        (lambda text: text.partition("\n")[0], "damaged"),
        (lambda text: "", "damaged"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_a_damaged_file_is_named(folder, damage, told):
    """Half a download must not train a model."""
    file = folder / "A_DeviceMotion_data" / "dws_11" / "sub_7.csv"
    file.write_text(damage(file.read_text()))
    with pytest.raises(UserError, match=told) as error:
        recordings(folder, [7])
    assert "dws_11/sub_7.csv" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_zip_is_told(archive):
    """Half a download of the zip, or one flipped bit in it."""
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="zip"):
        recordings(archive)
    archive.write_bytes(whole.replace(b"49.050000", b"49.950000"))
    with pytest.raises(UserError, match="damaged"):
        recordings(archive)


def test_what_is_not_there_is_told_with_what_to_do(folder, tmp_path):
    """The path comes from a person."""
    (tmp_path / "empty").mkdir()
    for path, subjects, told in (
        (tmp_path / "nowhere", None, "not there; get A_DeviceMotion_data.zip"),
        (tmp_path / "empty", None, "no <activity>_<trial>"),
        (folder / "A_DeviceMotion_data" / "dws_11" / "sub_7.csv", None, "neither a folder nor a readable zip"),
        (folder, [7, 8, 9], "no subject 8, 9; choose from 7, 12"),
    ):
        with pytest.raises(UserError, match=told):
            recordings(path, subjects)


def test_subjects_are_lists_and_ranges():
    """`--subjects 1-6,9`."""
    assert parse_subjects("1-3, 9") == [1, 2, 3, 9]
    assert parse_subjects("4,2-4") == [2, 3, 4]
    for wrong in ("", "x", "3-1", "1,,2", "-3", "1-", "99999"):
        with pytest.raises(UserError, match="1-6,9"):
            parse_subjects(wrong)


# Three subjects: reading all of them would take half of what the unit tests may take.
@pytest.mark.skipif(not REAL.exists(), reason=f"no MotionSense data at {REAL}; set DRIFTLOOP_MOTIONSENSE to it")
def test_the_real_recordings_are_read_whole():
    """The layout is what people download, not what we imagine."""
    began = time.perf_counter()
    read = recordings(REAL / "A_DeviceMotion_data.zip" if REAL.is_dir() else REAL, [1, 7], 1.7e9)
    print(f"{sum(map(len, read)):,} readings in {time.perf_counter() - began:.2f} s")
    for recording in read:
        assert len(np.unique(recording.trials)) == 15
        assert set(recording.labels.tolist()) == set(range(6))
        assert recording.person.weight is not None
        low, high = (np.array([getattr(channel, end) for channel in CHANNELS]) for end in ("low", "high"))
        assert ((recording.values >= low) & (recording.values <= high)).all()
        computed = recording.values.copy()
        computed[:, GRAVITY] = np.nan
        np.testing.assert_allclose(complete_gravity(computed), recording.values, atol=0.02)
