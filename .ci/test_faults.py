"""Tests that break each call, and kill each program: shorter runs of the faults."""
from __future__ import annotations

import random

from colonies import SUCCESS
from faults import break_calls, change_meanwhile, kill_at_random, soak, some_of_each
from servers import Postgres, SeaweedFS
from timescale import Timescale


def test_each_fault_at_a_call_of_a_backup_comes_to_what_is_promised(
        backup_servers: tuple[Postgres, SeaweedFS]) -> None:
    """A seventh of the cases, the same each time; `faults` has them all."""
    _, wrong = break_calls(*backup_servers,
                           lambda cases: some_of_each(cases, random.Random(7)), worlds=4)
    assert not wrong, "\n".join(wrong)


def test_programs_that_are_killed_at_random_moments_lose_nothing() -> None:
    killed, ends = kill_at_random(40, seed=7)
    assert killed.total() >= 40 and ends[SUCCESS] > 10


def test_backups_of_tables_that_are_changed_meanwhile_have_every_row(
        timescale: Timescale, backup_servers: tuple[Postgres, SeaweedFS]) -> None:
    done, (good, again, _) = change_meanwhile(timescale, backup_servers[1], seed=1, backups=5)
    assert good and again and len(done) > 3, (done, good, again)


def test_one_backup_after_the_other_leaves_nothing_behind(
        backup_servers: tuple[Postgres, SeaweedFS]) -> None:
    before, after = soak(*backup_servers, 18)
    assert after[1:] == before[1:]
    assert after.megabytes < before.megabytes + 1
