"""A checkpoint writes state only for partitions that are still this agent's."""

import asyncio
from types import SimpleNamespace

import pytest

from schemas.settings import Settings
from streams.agent import UNSURE_S, Watcher


class Group:
    """The group's answers to commits, and what was written between them."""

    consumer_generation_id = 1
    rebalancing = False

    def __init__(self, *answers):
        self.answers = list(answers)
        self.log = []
        self.consumer = self

    async def committed_through(self, offsets):
        self.log.append(f"commit {sorted(offsets.values())}")
        return self.answers.pop(0)


@pytest.fixture
def watch():
    def made(*answers):
        group = Group(*answers)
        table = SimpleNamespace(
            changelog_topic=SimpleNamespace(get_topic_name=lambda: "changelog"), data=SimpleNamespace(data={})
        )
        settings = Settings(_env_file=None, kafka_bootstrap="127.0.0.1:1")
        watcher = Watcher(group, settings, table, lambda: None, SimpleNamespace())

        async def acknowledged():
            pass

        watcher.outbox = SimpleNamespace(
            send=lambda *record: group.log.append(f"write {record[1].decode()}"),
            acknowledged=acknowledged,
            forget=lambda: None,
        )
        watcher.processors = {0: SimpleNamespace(snapshot=lambda: {"phone": b"state"})}
        watcher.begun, watcher.taken = {0: 5}, {0: 9}
        return watcher, group

    return made


def test_an_agent_that_has_committed_nothing_for_long_asks_first(watch):
    """Frozen until its partitions have moved, it would write states older than their new owner's."""
    watcher, group = watch(False)
    asyncio.run(watcher.checkpoint())
    assert group.log == ["commit [5]"]
    assert watcher.committed == {}


def test_one_that_still_owns_them_writes_and_commits(watch):
    watcher, group = watch(True, True, True)
    asyncio.run(watcher.checkpoint())
    assert group.log == ["commit [5]", "write phone", "commit [9]"]
    watcher.taken = {0: 12}
    asyncio.run(watcher.checkpoint())
    assert group.log[3:] == ["write phone", "commit [12]"], "a moment ago they were its own"


def test_one_that_freezes_while_it_asks_asks_again(watch):
    watcher, group = watch(True, False)
    commit = watcher._commit

    async def frozen(offsets):
        answer = await commit(offsets)
        if len(group.log) == 1:
            watcher.sure -= 2 * UNSURE_S  # so long ago was it asked
        return answer

    watcher._commit = frozen
    asyncio.run(watcher.checkpoint())
    assert group.log == ["commit [5]", "commit [5]"]
