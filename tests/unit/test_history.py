"""The monitor's history: what was is shown after a restart, and what was not known is a gap."""

from workers.history import History

DAY = 86400.0
NOW = 1_700_000_000.0


def test_a_restart_shows_what_was_before(tmp_path):
    """The oldest complaint about lag pages: history gone with the process (CMAK #1)."""
    first = History(tmp_path / "h.sqlite", days=7)
    first.add(NOW, {"lag|g": 5.0})
    first.remember("seen", {"a": 1})
    first.close()
    second = History(tmp_path / "h.sqlite", days=7)
    assert second.read("lag|g", NOW - 60, NOW + 60) == [(int(NOW), 5.0)]
    assert second.remembered("seen") == {"a": 1}


def test_what_was_not_known_is_a_gap_and_not_a_line(tmp_path):
    """A broker that was away for a minute had no lag of any size then."""
    history = History(tmp_path / "h.sqlite", days=7)
    for at in (0, 10, 20, 120, 130):
        history.add(NOW + at, {"lag|g": 1.0})
    values = [value for _, value in history.read("lag|g", NOW, NOW + 200)]
    assert values == [1.0, 1.0, 1.0, None, 1.0, 1.0]


def test_what_is_too_old_goes_and_what_is_old_becomes_coarser(tmp_path):
    """A disk must not fill up because a page is open."""
    history = History(tmp_path / "h.sqlite", days=2)
    history.add(NOW - 3 * DAY, {"x": 1.0})
    for at in range(0, 120, 10):
        history.add(NOW - DAY + at, {"x": float(at)})
    history._pruned = float("-inf")
    history.add(NOW, {"x": 9.0})
    kept = history._connection.execute("SELECT ts, value FROM points ORDER BY ts").fetchall()
    assert len(kept) < 6
    assert kept[0][0] > NOW - 2 * DAY
    assert kept[-1] == (int(NOW), 9.0)


def test_a_long_span_is_thinned(tmp_path):
    """A plot is 600 points wide, whatever it spans."""
    history = History(tmp_path / "h.sqlite", days=7)
    for at in range(0, 6000, 10):
        history.add(NOW + at, {"x": 1.0})
    assert len(history.read("x", NOW, NOW + 6000, most=100)) <= 102


def test_a_broken_file_is_put_aside(tmp_path):
    """After a crash of the disk the page must still come up."""
    path = tmp_path / "h.sqlite"
    path.write_bytes(b"this is no database" * 100)
    history = History(path, days=7)
    history.add(NOW, {"x": 1.0})
    assert history.read("x", NOW - 60, NOW + 60) == [(int(NOW), 1.0)]
    assert list(tmp_path.glob("*.broken-*"))
