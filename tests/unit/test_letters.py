"""Dead letters: what of them may be looked at, and what may be sent again."""

from dataclasses import replace

from streams.letters import Letter, plan, shown, visible

LETTER = Letter(
    topic="activity.dlq",
    partition=1,
    offset=7,
    written=100.0,
    reject_class="syntax",
    reason="not JSON",
    source="activity",
    source_partition=1,
    source_offset=99,
    key=b"phone-01",
    value=b"{",
    size=1,
    headers=(),
    replay_of=None,
)


def test_a_letter_is_sent_again_once():
    """Twice the same reading is twice the same mistake, or worse, twice the same effect."""
    assert plan([LETTER], set(), most=10).chosen == [LETTER]
    assert plan([LETTER], {"activity.dlq/1/7"}, most=10).chosen == []


def test_a_letter_that_came_back_is_not_sent_in_a_circle():
    """Nothing has changed since it was refused the last time."""
    back = replace(LETTER, replay_of="activity.dlq/1/3")
    assert plan([back], set(), most=10).chosen == []
    assert plan([back], set(), most=10, again=True).chosen == [back]


def test_what_is_not_whole_is_not_sent():
    """Half a record is another record."""
    cut = replace(LETTER, reason="oversize (cut: 40000000 bytes, at most 33554432 fit)")
    lost = replace(LETTER, source=None)
    assert plan([cut, lost], set(), most=10).chosen == []
    assert set(plan([cut, lost], set(), most=10).passed_over) == {
        "was too big to be kept whole",
        "does not say where it came from",
    }


def test_a_limit_is_kept_and_told():
    """Who replays a million by mistake wants to have been asked."""
    found = plan([replace(LETTER, offset=at) for at in range(5)], set(), most=2)
    assert len(found.chosen) == 2
    assert found.passed_over == {"beyond the limit": 3}


def test_bytes_are_shown_without_doing_anything():
    """A terminal obeys escapes, a page turns with the direction marks of right-to-left text."""
    assert visible("a\x1b[31mb\u202ec\x00") == "a\\x1b[31mb\\u202ec\\x00"
    assert shown(b"\xff\xfe<img>", 64) == {"text": "\\xff\\xfe<img>", "hex": "ff fe 3c 69 6d 67 3e", "bytes": 7}


def test_a_large_value_is_cut_and_its_size_told():
    """32 MB of nonsense must not become 32 MB of page."""
    found = shown(b"x" * 10_000, 100)
    assert found is not None
    assert (len(found["text"]), found["bytes"]) == (100, 10_000)
