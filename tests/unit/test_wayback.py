"""Where to go back to: the last version that was deployed and not left."""

import msgspec
import pytest

from deploy.wayback import dispensable_images, in_force, newest, way_back
from schemas.events import ModelDeployed, Smoke

FIRST = ModelDeployed(
    model="m",
    version="1",
    target="docker",
    endpoint="http://e",
    smoke=Smoke(requests=1, p50_ms=1.0, p99_ms=1.0),
    reason="first",
    caused_by="c",
    digest="d",
)


def history(text):
    """`1 2 <1`: version 1, version 2, back to version 1."""
    return [
        msgspec.structs.replace(
            FIRST,
            version=each.lstrip("<"),
            reason="rollback" if each[0] == "<" else "drift",
            image=f"i{each.lstrip('<')}",
        )
        for each in text.split()
    ]


@pytest.mark.parametrize(
    ("deployed", "serves", "back"),
    [
        ("1", "1", None),
        ("1 2", "2", "1"),
        ("1 2 <1", "1", None),
        ("1 2 3 <2", "2", "1"),
        ("1 2 3 <2 <1", "1", None),
        ("1 2 <1 3", "3", "1"),
        ("1 2 3 1", "1", "3"),
        ("1 2 3 1 <3", "3", "2"),
        ("<1", "1", None),
    ],
)
def test_the_way_back_is_the_last_version_in_force(deployed, serves, back):
    """A version that was left is never gone back to, or two broken ones would hand requests to each other."""
    told = history(deployed)
    assert in_force(told)[-1].version == serves
    found = way_back(told)
    assert (found.version if found else None) == back


def test_nothing_was_ever_deployed():
    assert way_back([]) is None
    assert newest([]) == 0


def test_the_newest_version_counts_even_if_it_was_left():
    """Else the event of a broken version would deploy it again."""
    assert newest(history("9 10 <9")) == 10


@pytest.mark.parametrize(
    ("deployed", "gone"),
    [("1 2", []), ("1 2 3", []), ("1 2 3 4", ["i1"]), ("1 2 3 4 <3", ["i4"]), ("1 2 3 4 5 1", ["i2", "i3"])],
)
def test_an_image_goes_when_neither_service_nor_way_back_needs_it(deployed, gone):
    """Registries fill up; the image of what serves must survive any clean-up."""
    assert dispensable_images(history(deployed)) == gone
