"""Tests of what is kept: tiers, what restored, what people label, and what became of a shrink.

The first part asks the pure function, with days to spare; the second a real server and bucket.
"""
from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import hypothesis
import pytest
from hypothesis import strategies

import backup_executor
from backup_executor import Backup, Keep, by_database, judge, retained
from colonies import FAILED
from proxies import FORBIDDEN, Proxy, http_answer, http_reply, through
from restores import Proof
from surroundings import GENERATIONS, Scene, Site, becomes_true, standin

FIRST = date(2024, 8, 3)
MINE = {"sha256": "ab", "system-identifier": "1", "database": "shop"}
RESTORED = "restored, row for row in number"


@pytest.fixture(autouse=True)
def stockholm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as here:
        here.setenv("TZ", "Europe/Stockholm")
        time.tzset()
        yield
    time.tzset()


def at(day: date, hour: int = 1) -> int:
    """When it is that hour there, on that day."""
    return int(datetime(day.year, day.month, day.day, hour,
                        tzinfo=ZoneInfo("Europe/Stockholm")).timestamp())


def made(seconds: int, size: int = 1000, **metadata: Any) -> Backup:
    told = {name.replace("_", "-"): str(text) for name, text in metadata.items()}
    return Backup(seconds, f"p/backup_{seconds}.bak", size, MINE | told)


def kept(ours: list[Backup], keep: Keep, verdicts: Any = None, now: float = 0) -> list[Backup]:
    whys = retained(ours, {} if verdicts is None else verdicts, keep, now)
    return [each for each in ours if whys[each.key]]


def days(ours: list[Backup]) -> list[date]:
    return [datetime.fromtimestamp(each.seconds).astimezone().date() for each in ours]


def verdict(rows: dict[str, int] | None = None, word: str = RESTORED) -> dict[str, Any]:
    return {"verdict": word, "time": "2026-01-01T00:00:00+00:00"} | (
        {} if rows is None else {"rows": rows})


def name(backup: Backup) -> str:
    return backup.key.removeprefix("p/")


def following(seconds: int, size: int, ours: list[Backup], verdicts: Any, keep: Keep,
              **more: Any) -> Backup:
    """The next backup, with what it tells of those before it, of which ours are the last ones."""
    for newest in ours[-1:] if ours and backup_executor.is_steady(ours[-1]) else [
            backup_executor.as_steady(each, ours, verdicts, keep.newest) for each in ours[-1:]]:
        last = [newest] if backup_executor.is_steady(newest) else [
            each for each in ours if name(each) == newest.known.get("after")]
        for good in last:
            more["before"] = " ".join((newest if newest.before else good).before)
            word = "normal" if more["before"] else "steady"
            more |= {word: size} if size * 2 >= good.size else {"after": name(good)}
    return made(seconds, size, **more)


# ---- Tiers -------------------------------------------------------------------------------------

TIERS = Keep(3, 7, 4, 12, 3)


def calendar(last: date, first: date, keep: Keep) -> dict[date, set[str]]:
    """Of one backup each day, which a calendar says are kept, and for what."""
    every = [last - timedelta(back) for back in range((last - first).days + 1)]  # newest first
    wanted: dict[date, set[str]] = {day: {"newest"} for day in every[:keep.newest]}
    for tier, many, called in (
            ("daily", keep.daily, lambda day: day.isoformat()),
            ("weekly", keep.weekly, lambda day: "{}-W{:02}".format(*day.isocalendar())),
            ("monthly", keep.monthly, lambda day: f"{day.year}-{day.month:02}"),
            ("yearly", keep.yearly, lambda day: str(day.year))):
        seen: list[str] = []
        for day in every:
            if called(day) not in seen and len(seen) < many:
                seen.append(called(day))
                wanted.setdefault(day, set()).add(f"{tier} {called(day)}")
    return wanted


def test_800_nights_leave_what_a_calendar_says() -> None:
    ours: list[Backup] = []
    for night in range(800):
        today = FIRST + timedelta(night)
        ours = kept([*ours, made(at(today))], TIERS)
        assert days(ours) == sorted(calendar(today, FIRST, TIERS)), today
    whys = retained(ours, {}, TIERS, 0)
    for each, day in zip(ours, days(ours)):
        assert set(whys[each.key].split(", ")) == calendar(today, FIRST, TIERS)[day]


def test_hourly_backups_take_no_places_of_days() -> None:
    ours: list[Backup] = []
    for hour in range(24 * 20):
        ours = kept([*ours, made(at(FIRST) + 3600 * hour)], Keep(3, 7))
    last = at(FIRST) + 3600 * (24 * 20 - 1)  # midnight
    assert {each.seconds for each in ours} == {
        *range(last, last - 3 * 3600, -3600), *(last - 3600 - 86400 * back for back in range(6))}


KEEPS = strategies.builds(Keep, strategies.integers(1, 4), *[strategies.integers(0, 4)] * 4)
BACKUPS = strategies.lists(strategies.tuples(
    strategies.integers(0, 10**8) | strategies.just(10**18 - 1),  # what a name has room for
    strategies.sampled_from([10, 400, 500, 1000, 1900]),
    strategies.sampled_from([{}, {}, {"steady": "400"}, {"compression": "zstd:1"},
                             {"keep-until": "forever"}, {"keep-until": "1971-03-01"},
                             {"keep-until": "\u0661"}, {"database-size": "7"}])),
    max_size=20, unique_by=lambda each: each[0])
VERDICTS = strategies.sampled_from([
    None, verdict(), verdict({"a": 9}), verdict({"a": 10**9}), verdict({}), verdict(word="failed"),
    {"verdict": "readable", "time": "?", "rows": 7}, {"verdict": RESTORED, "rows": 7}])


def all_made(there: list[Any]) -> list[Backup]:
    return [made(seconds, size, **more) for seconds, size, more in sorted(
        there, key=lambda each: int(each[0]))]


@hypothesis.given(BACKUPS, KEEPS, strategies.data())
@hypothesis.settings(max_examples=300)
def test_whatever_is_there_what_is_promised_stays(
        there: list[Any], keep: Keep, data: Any) -> None:
    now = data.draw(strategies.integers(0, 10**8))
    ours = all_made(there)
    drawn = {name(each): data.draw(VERDICTS) for each in ours}
    verdicts = {each: was for each, was in drawn.items() if was}
    whys = retained(ours, verdicts, keep, now)
    doubts = judge(ours, verdicts, keep.newest, now).doubts
    assert list(whys) == [each.key for each in ours]
    assert all(whys[each.key] for each in ours[-1:])  # the newest
    counting = [each for each in ours if "kept until" not in whys[each.key]
                and "cannot be read" not in whys[each.key]]
    for sort in (True, False):
        of_it = [each for each in counting if (each.key in doubts) == sort]
        assert all(whys[each.key] for each in of_it[-keep.newest:])
    restored = [each for each in ours
                if verdicts.get(name(each), {}).get("verdict", "").startswith("restored")]
    assert all(whys[each.key] for each in restored[-1:])
    assert all(whys[each.key] for each in [x for x in restored if x.key not in doubts][-1:])
    for each in ours:
        until = each.known.get("keep-until")
        stays = until == "\u0661" or until == "forever" or (
            until == "1971-03-01" and now < at(date(1971, 3, 2), 0))
        assert bool(whys[each.key]) or not stays
    assert all(retained(ours, None, keep, now).values())  # nothing is known: nothing goes
    for each in ours[:1]:  # one that was left behind, uploaded at last
        assert retained(ours, verdicts, keep, now, each.key) == {
            **whys, each.key: whys[each.key] or "the new one"}
    # More places let nothing more go, and another database's change nothing.
    more = retained(ours, verdicts, Keep(keep.newest, *(x + 1 for x in keep[1:])), now)
    assert all(more[key] for key, why in whys.items() if why)
    others = [each._replace(metadata={**each.known, "database": "other"}) for each in ours]
    whose = by_database(sorted([*ours, *others], key=lambda each: each[:2]))
    assert retained(whose.get(("1", "shop"), []), verdicts, keep, now) == whys


@hypothesis.given(KEEPS, strategies.sampled_from([0, 1, 7, 30]), strategies.integers(0, 10**9))
@hypothesis.settings(max_examples=40, deadline=None)
def test_400_nights_of_whatever_may_happen_leave_what_is_promised(
        keep: Keep, every: int, seed: int) -> None:
    """Of shrinks, growths, an emptied database, clocks that jump, verifies that fail or are lost.

    EVERY: nights between two verifies; 0: there is none.
    """
    chance, clock = random.Random(seed), at(FIRST)
    ours, verdicts, full = list[Backup](), dict[str, Any](), set[str]()
    rows, left = 10_000, 1.0  # of the database, and the part of them that is left
    for night in range(400):
        clock += 86400 * (chance.choice([-40, 3, 400]) if chance.random() < .02 else 1)
        if chance.random() < .01:
            left = chance.choice([0, .02, .2, .3, .45]) if left == 1 else 1
        elif left == 1 and chance.random() < .03:
            rows = max(2000, int(rows * chance.choice([.3, .45, .6, 1.5, 3])))
        rows += chance.randint(-1, 1)
        new = following(max([clock, *(each.seconds + 1 for each in ours[-1:])]),
                        int(10 + rows * left), ours, verdicts, keep)
        full |= {new.key} if left == 1 else set()
        every_one, known = [*ours, new], chance.random() > .02
        ours = kept(every_one, keep, verdicts) if known else every_one
        doubts = judge(every_one, verdicts, keep.newest, 0).doubts
        proofs = [each for each in every_one if backup_executor.restored(each, verdicts)]
        good_ones = [each for each in every_one if each.key not in doubts]
        stay = {each.key for each in ours}
        assert {each.key for each in (new, *proofs[-1:], *good_ones[-1:])} <= stay
        assert stay & full or not full
        assert not known or len(ours) <= 2 * sum(keep) + 6
        if every and night % every == 0:
            judged = judge(ours, verdicts, keep.newest, 0)
            promising = backup_executor.promising(judged, verdicts, keep.newest)
            taken = judged.since[-1] if promising else good_ones[-1]
            word = "failed" if chance.random() < .1 else RESTORED
            verdicts[name(taken)] = verdict({"t": taken.size}, word)
        verdicts = {each: was for each, was in verdicts.items() if each in map(name, ours)}


# ---- A shrink ----------------------------------------------------------------------------------

def nights(sizes: list[int], keep: Keep, verify: Any = None, **more: Any) -> Iterator[
        tuple[list[Backup], set[str], dict[str, Any]]]:
    """Night by night, what is there, what of it is doubtful, and the verdicts; VERIFY(night) says
    what a verify of what `verify` takes then says."""
    ours: list[Backup] = []
    verdicts: dict[str, Any] = {}
    for night, size in enumerate(sizes):
        day = at(FIRST + timedelta(night))
        ours = kept([*ours, following(day, size, ours, verdicts, keep, **more)], keep, verdicts)
        judged = judge(ours, verdicts, keep.newest, 0)
        if verify:
            good = [each for each in ours if each.key not in judged.doubts]
            promising = backup_executor.promising(judged, verdicts, keep.newest)
            taken = judged.since if promising else good
            rows = verify(night, taken[-1])
            verdicts |= {} if rows is None else {name(taken[-1]): verdict(rows)}
        there = {name(each) for each in ours}
        verdicts = {each: was for each, was in verdicts.items() if each in there}
        yield ours, judge(ours, verdicts, keep.newest, 0).doubts, verdicts


def sundays(night: int, taken: Backup) -> dict[str, int] | None:
    return {"public.t": taken.size} if night % 7 == 6 else None


def test_30_nights_after_a_lasting_shrink_its_size_is_normal_and_the_last_before_is_there() -> None:
    *_, (ours, doubts, verdicts) = nights([1000] * 10 + [450] * 30, Keep(3), sundays)
    assert not doubts and max(ours).size == 450
    assert [each.size for each in ours if each.seconds < at(FIRST + timedelta(30))][:1] == [1000]
    assert days(ours)[0] == FIRST + timedelta(9) and len(ours) in (4, 5)
    whys = retained(ours, verdicts, Keep(3), 0)
    assert "shrink" in whys[ours[0].key]
    # As long as no verify restores one, they are doubtful.
    *_, (ours, doubts, _) = nights([1000] * 10 + [450] * 30, Keep(3))
    assert len(doubts) == 3 and len(ours) == 6
    # It is let go when one of its size is there again.
    *_, (ours, doubts, _) = nights([1000] * 10 + [450] * 30 + [600] * 9, Keep(3), sundays)
    assert not doubts and len(ours) <= 4 and FIRST + timedelta(9) not in days(ours)


def test_an_emptied_database_never_eats_the_good_ones_though_it_restores_each_sunday() -> None:
    for left, rows in ((300, 90), (10, 0), (300, 0)):
        def proof(night: int, taken: Backup, rows: int = rows) -> dict[str, int] | None:
            many = 1000 if taken.size == 1000 else rows
            return ({"public.t": many} if many else {}) if night % 7 == 6 else None
        for ours, doubts, _ in nights([1000] * 10 + [left] * 100, Keep(3), proof):
            good = [each for each in ours if each.key not in doubts]
            assert all(each.size == 1000 for each in good) and len(good) >= min(3, len(ours))


def test_a_second_shrink_costs_not_the_last_one_before_the_first() -> None:
    """Nor does what goes up and down below half of it."""
    sizes = [1000] * 10 + ([450] * 15 + [200] * 15) * 4
    *_, (ours, _, _) = nights(sizes, Keep(2), lambda night, taken: {"public.t": taken.size})
    assert ours[0].size == 1000 and 450 in [each.size for each in ours] and len(ours) < 8


def test_a_slow_shrink_makes_none_doubtful_though_old_large_ones_are_kept() -> None:
    sizes = [int(10**6 * 0.995**night) for night in range(800)]
    there = [(ours, doubts) for ours, doubts, _ in nights(sizes, TIERS)]
    assert not any(doubts for _, doubts in there)
    ours = there[-1][0]
    assert days(ours) == sorted(calendar(FIRST + timedelta(799), FIRST, TIERS))
    assert ours[0].size > 10 * ours[-1].size


@pytest.mark.parametrize("keep", [Keep(3), Keep(1), TIERS])
@pytest.mark.parametrize("first", [0, 10], ids=["its rows known", "its rows unknown"])
def test_what_shrinks_on_after_a_shrink_that_became_normal_is_seldom_doubtful(
        keep: Keep, first: int) -> None:
    """Though the last one before is there, and by then is ten times as large."""
    def proof(night: int, taken: Backup) -> dict[str, int] | None:
        if night < first or night % 7 != 6:
            return None
        return {"public.t": taken.size} if taken.size > 5 else {}

    sizes = [1000] * 10 + [450] * 20 + [int(450 * .99**night) for night in range(270)]
    doubtful = 0
    for ours, doubts, _ in nights(sizes, keep, proof):
        doubtful += ours[-1].key in doubts
        assert 1000 in [each.size for each in ours]
    assert doubtful <= 12 and not doubts and ours[-1].size < 40
    *_, (ours, doubts, _) = nights([*sizes, *[5] * 50], keep, proof)  # then somebody empties it
    assert {each.size for each in ours if each.key in doubts} == {5}
    assert {1000, sizes[-1]} < {each.size for each in ours}


def test_what_becomes_normal_again_and_again_costs_none_of_those_before() -> None:
    """1000, 450, 200, 90: and up again, where each is let go as one of its size is there."""
    down = [size for size in (1000, 450, 200, 90) for _ in range(25)]
    *_, (ours, doubts, _) = nights(down, Keep(2), sundays)
    assert [each.size for each in ours][:3] == [1000, 450, 200] and not doubts
    *_, (ours, doubts, _) = nights([*down, *[240] * 25], Keep(2), sundays)
    assert [each.size for each in ours][:2] == [1000, 240] or ours[1].size == 450
    *_, (ours, doubts, _) = nights([*down, *[510] * 25], Keep(2), sundays)
    assert {each.size for each in ours} == {510} and not doubts


def test_what_empties_just_as_a_shrink_has_become_normal_costs_not_the_last_one_before() -> None:
    sizes = [1000] * 10 + [450] * 11 + [5] * 9 + [450] * 40
    for empty in (0, 1, 9):
        there = [*sizes[:21], *sizes[30 - empty:]]
        for ours, doubts, _ in nights(there, Keep(2), lambda night, taken: {
                20: {"public.t": 450}}.get(night)):
            assert ours[0].size == 1000
            assert all(each.size == 5 for each in ours if each.key in doubts) or len(ours) < 10
        assert {each.size for each in ours if each.key in doubts} <= {5}


def test_what_was_emptied_before_a_shrink_became_normal_stays_doubtful() -> None:
    for left in (5, 219):  # less than half of the new normal
        large, *rest = made(1, 1000, steady=1000), made(2, 450, after="backup_1.bak"), made(
            3, left, after="backup_1.bak"), made(4, 440, steady=440, before="backup_1.bak")
        judged = judge([large, *rest], {}, 3, 0)
        assert (judged.doubts, judged.before) == ({rest[1].key}, [large])


def test_what_an_older_version_makes_after_a_shrink_costs_not_the_last_one_before() -> None:
    """It knows no word but `steady`, and tells nothing of a shrink."""
    ours = [made(1, 1000, steady=1000), made(2, 450, after="backup_1.bak"),
            made(3, 450, normal=450, before="backup_1.bak"), made(4, 450)]
    judged = judge(ours, {}, 2, 0)
    assert (judged.doubts, judged.before, judged.last) == (set(), ours[:1], ours[3])
    older = [each._replace(metadata={word: text for word, text in each.known.items()
                                     if word not in ("normal", "before")}) for each in ours]
    for verdicts in {}, {"backup_3.bak": verdict()}:
        whys = retained(older, verdicts, Keep(1), 0)
        assert whys["p/backup_1.bak"]


def test_no_more_of_what_is_told_to_be_before_is_passed_on_than_fits(scene: Scene) -> None:
    """Whatever an object's metadata say: S3 takes 2 kB of them."""
    first = scene.backup()
    told = {**scene.head(first["filename"])["Metadata"], "steady": str(first["size"])}
    later, body = f"backup_{int(time.time()) + 9}.bak", scene.objects()[first["filename"]]
    scene.put(later, body, **told | {"before": "backup_%s.bak " % ("9" * 18) * 30 + "x" * 300})
    passed = scene.head(scene.backup()["filename"])["Metadata"]["before"]
    assert passed.split() == [f"backup_{'9' * 18}.bak"] * 12


def test_what_only_a_doubtful_one_tells_to_be_before_a_shrink_is_passed_on(scene: Scene) -> None:
    """It was made just after that shrink had become normal, and the last good one before that."""
    first = scene.backup()
    told = scene.head(first["filename"])["Metadata"]
    small = scene.objects()[first["filename"]][:first["size"] // 3]
    scene.put(f"backup_{int(time.time()) + 9}.bak", small,
              **told | {"after": first["filename"], "before": "backup_7.bak"})
    made = scene.backup()
    told = scene.head(made["filename"])["Metadata"]
    assert (told["before"], told["normal"]) == ("backup_7.bak", str(made["size"]))


def test_another_databases_larger_backups_say_nothing_of_this_one() -> None:
    def told(*others: Backup) -> bool:
        return backup_executor.is_steady(backup_executor.as_steady(
            made(9, 400), sorted([*others, made(9, 400)]), {}, 3))
    other = made(8, 1000)
    assert told() and not told(other)
    assert told(other._replace(metadata={**other.known, "database": "large"}))
    lost = {**other.known, "system-identifier": "2"}  # a server's, of this one's name
    assert not told(other._replace(metadata=lost))
    for unknown in (None, {}, {"database": "large"}):  # S3 may have forgotten, or show nothing
        assert not told(other._replace(metadata=unknown))


def test_another_compression_starts_anew_by_the_databases_own_size() -> None:
    def changed(own: int, size: int = 100) -> set[str]:
        old = [made(i, 1000, compression="none", database_size=5000) for i in range(3)]
        new = [made(i, size, compression="zstd:1", database_size=own) for i in range(3, 6)]
        return judge([*old, *new], {}, 3, 0).doubts
    assert not changed(5000) and not changed(2500)
    assert len(changed(2499)) == 3
    same = [made(i, size, compression="zstd:1", database_size=5000)
            for i, size in enumerate((1000, 499))]
    assert judge(same, {}, 3, 0).doubts == {same[1].key}


def test_rows_say_more_than_sizes() -> None:
    old, new = made(1), made(2, 100)
    before = {name(old): verdict({"a": 100, "b": 10, "c": 1})}
    for rows, doubtful in (({"a": 50, "b": 5, "c": 1}, False), ({"a": 100}, True), ({}, True),
                           ({"a": 100, "b": 4, "c": 1}, True), ({"a": 100, "b": 10}, True),
                           (None, True)):
        verdicts = before | {name(new): verdict(rows)}
        assert judge([old, new], verdicts, 3, 0).doubts == ({new.key} if doubtful else set()), rows
    failed = before | {name(new): verdict({"a": 50, "b": 5, "c": 1}, "failed")}
    assert judge([old, new], failed, 3, 0).doubts == {new.key}
    # A tenth of the rows is what makes a few in a row normal.
    for many, normal in ((10, True), (9, False)):
        verdicts = {name(old): verdict({"a": 100}), name(new): verdict({"a": many})}
        assert (not judge([old, new], verdicts, 1, 0).doubts) == normal


def test_rows_without_what_was_in_them_cost_not_the_last_one_that_had_it() -> None:
    """As after an UPDATE that sets a large column to NULL."""
    for night in nights([1000] * 8 + [30] * 20, Keep(3), lambda *_: {"public.t": 9}):
        assert night[0][0].size == 1000
    assert not night[1] and len(night[0]) == 4
    *_, (ours, _, _) = nights([1000] * 8 + [30] * 9 + [600] * 9, Keep(3), lambda *_: {"t": 9})
    assert {each.size for each in ours} == {600}


def test_a_doubtful_one_takes_no_place_of_a_good_one() -> None:
    good, bad = made(at(date(2025, 8, 30))), made(at(date(2025, 8, 31)), 10)
    ours = [good, bad, made(at(date(2025, 9, 1)))]
    whys = retained(ours, {}, Keep(1, monthly=2), 0)
    assert whys[good.key] == "monthly 2025-08" and "doubtful" in whys[bad.key]


def test_what_was_normal_keeps_its_places_though_its_verdicts_are_lost() -> None:
    ours = [*(made(i) for i in range(3)),
            *(made(at(date(2025, month, 28)), 450) for month in range(1, 13))]
    known = {name(ours[6]): verdict({"a": 1})}
    for verdicts in (known, {}):
        judged, whys = judge(ours, verdicts, 3, 0), retained(ours, verdicts, Keep(3, monthly=12), 0)
        assert len(judged.doubts) == (0 if verdicts else 12)
        assert all(whys[each.key] for each in ours[2:])


@pytest.mark.parametrize(("size", "rows", "normal"), [
    (300, {"a": 1}, True), (300, None, True), (300, {}, False), (240, {"a": 1}, False)])
def test_where_nobody_knows_the_rows_before_the_size_tells_what_is_emptied(
        size: int, rows: dict[str, int] | None, normal: bool) -> None:
    ours = [*(made(i) for i in range(3)), *(made(i, size - i) for i in range(3, 6))]
    verdicts, small = {name(ours[4]): verdict(rows)}, {each.key for each in ours[3:]}
    judged = judge(ours, verdicts, 3, 0)
    assert judged.doubts == (set() if normal else small)
    assert judged.before == ([ours[2]] if normal else [])
    assert judge(ours, verdicts, 4, 0).doubts == small  # they are too few
    again = judge([*ours, made(6, 500)], verdicts, 3, 0)  # one of half of its size is there
    assert not again.before and again.doubts == (set() if normal else small)


@pytest.mark.parametrize(("sizes", "known", "promises"), [
    ([300, 300], {}, True), ([300, 240], {}, False), ([240, 300], {}, True), ([300], {}, False),
    ([300, 240], {"backup_1.bak": verdict({"a": 9})}, True),
    ([300, 300], {"backup_2.bak": verdict()}, False)])
def test_a_verify_takes_the_newest_doubtful_one_where_that_may_make_it_normal(
        sizes: list[int], known: dict[str, Any], promises: bool) -> None:
    ours = [made(1), *(made(i, size) for i, size in enumerate(sizes, 2))]
    assert backup_executor.promising(judge(ours, known, 2, 0), known, 2) == promises


# ---- What people keep --------------------------------------------------------------------------

def test_what_is_labelled_counts_for_nothing_until_its_day_is_over() -> None:
    held = [made(at(FIRST) + i, label="a", keep_until="2024-08-05") for i in range(5)]
    ours = [*(made(at(FIRST, 0) + i) for i in range(3)), *held]
    soon, late = at(date(2024, 8, 5), 23), at(date(2024, 8, 6), 0)
    assert kept(ours, Keep(3), now=soon) == ours
    assert kept(ours, Keep(3), now=late) == held[2:]
    for until, stays in (("forever", True), ("2024-8-1", True), ("", True), ("2024-08-01", False)):
        one = made(at(FIRST, 0) - 9, keep_until=until)
        assert (one in kept([one, *ours[:3]], Keep(3), now=late)) == stays


@pytest.mark.parametrize(("label", "until", "fault"), [
    (None, None, ""), ("x" * 200, "forever", ""), ("", "9999-12-31", ""), (None, "2999-02-28", ""),
    ("före 2.30, \U0001f600 " * 9, "forever", ""), ("x", None, "keep-until"),
    ("x", "", "YYYY-MM-DD"), ("x", "2999-02-29", "YYYY-MM-DD"), ("x", "29990101", "YYYY-MM-DD"),
    ("x", "Forever", "YYYY-MM-DD"), ("x", "2024-08-02", "is over"), ("a\nb", "forever", "one line"),
    ("\ud800", "forever", "one line"), ("ä" * 101, "forever", "200 bytes"),
    ("x", "\u0662\u0660\u0662\u0667-01-01", "YYYY-MM-DD")])
def test_a_wrong_day_or_label_is_told(label: str | None, until: str | None, fault: str) -> None:
    said = backup_executor.keep_fault(label, until)
    assert bool(said) == bool(fault) and fault in said


@hypothesis.given(strategies.text(max_size=200))
def test_a_label_comes_through_metadata_as_it_was(label: str) -> None:
    if not backup_executor.keep_fault(label, "forever"):
        told = quote(label, safe="")
        assert told.isascii() and made(1, label=told).label == label and len(told) <= 600


# ---- With a real server and bucket -------------------------------------------------------------

def listed(scene: Scene) -> dict[str, Any]:
    """What `list --json` shows, by name."""
    return {row["name"]: row for row in json.loads(scene.run("list", "--json").stdout)}


def put(scene: Scene, day: date, body: bytes, metadata: dict[str, str]) -> str:
    """A backup of that day; its name."""
    called = f"backup_{at(day)}.bak"
    scene.put(called, body, **metadata)
    return called


def test_a_backup_keeps_the_newest_of_each_period_and_says_which(scene: Scene) -> None:
    whole = scene.given_backup()
    body, metadata = scene.objects()[whole], scene.head(whole)["Metadata"]
    names = {day: put(scene, date(2025, *day), body, metadata) for day in (
        (8, 1), (8, 31), (9, 29), (9, 30), (12, 27), (12, 28), (12, 30))}
    places = {"KEEP_DAILY": "1", "KEEP_MONTHLY": "4", "KEEP_YEARLY": "2", "TZ": "Europe/Stockholm"}
    said = scene.run("prune", "--dry-run", **places, FULL_BACKUPS="1").stdout
    result = scene.backup(**places, FULL_BACKUPS="1")
    told = {key.removeprefix(f"{scene.prefix}/"): why for key, why in result["kept"].items()}
    assert told == {
        result["filename"]: told[result["filename"]], names[12, 30]: "monthly 2025-12, yearly 2025",
        names[9, 30]: "monthly 2025-09", names[8, 31]: "monthly 2025-08"}
    assert told[result["filename"]].startswith("newest, daily ")
    assert set(scene.objects()) == set(told)
    for day in ((8, 1), (9, 29), (12, 27), (12, 28)):
        assert re.search(rf"(?m)^goes  {scene.prefix}/{names[day]} of 2025-.*: proven, ", said)
    assert re.search(rf"(?m)^stays {scene.prefix}/{names[8, 31]} of .*: monthly 2025-08$", said)


def test_a_labelled_backup_counts_for_nothing_and_list_shows_it(scene: Scene) -> None:
    label = "före 2.30, \U0001f600: 100 %"
    first = scene.backup(FULL_BACKUPS="2")["filename"]
    ran = scene.run("backup", "--label", label, "--keep-until", "2999-12-31", FULL_BACKUPS="2")
    held = json.loads(ran.stdout)
    assert (held["label"], held["keep_until"]) == (label, "2999-12-31")
    forever = json.loads(scene.run("backup", "--keep-until=forever", FULL_BACKUPS="2").stdout)
    assert set(scene.objects()) == {first, held["filename"], forever["filename"]}
    for _ in range(2):
        last = scene.backup(FULL_BACKUPS="2")
    assert first not in scene.objects() and len(scene.objects()) == 4
    why = last["kept"][held["filepath_s3"][1:]]
    assert why.startswith("kept until 2999-12-31: före")
    rows = listed(scene)
    assert (rows[held["filename"]]["label"], rows[held["filename"]]["keep_until"]) == (
        label, "2999-12-31")
    assert rows[forever["filename"]]["label"] is None and not any(
        row["doubtful"] for row in rows.values())
    assert f"kept until 2999-12-31: {label}\n" in scene.run("list").stdout
    assert scene.head(held["filename"])["Metadata"]["label"].isascii()
    # A day that is over, or that nobody can read: the object has the metadata alone.
    body, metadata = scene.objects()[first := last["filename"]], scene.head(first)["Metadata"]
    over, odd = (put(scene, date(2024, 1, day), body, metadata | {"keep-until": until})
                 for day, until in ((1, "2024-06-01"), (2, "next year")))
    last = scene.backup(FULL_BACKUPS="2")
    assert over not in scene.objects() and odd in scene.objects()
    assert "cannot be read" in last["kept"][f"{scene.prefix}/{odd}"]


@pytest.mark.parametrize("wrong", [
    ["--label", "x"], ["--keep-until", "2020-01-01"], ["--keep-until", "2999-1-1"],
    ["--keep-until", ""], ["--label", "a\tb", "--keep-until", "forever"],
    ["--resume", "--keep-until", "forever"]])
def test_what_cannot_be_kept_so_is_told_before_anything_is_done(
        scene: Scene, wrong: list[str]) -> None:
    ran = scene.run("backup", *wrong, status=2)
    assert re.search("level=error .*(keep-until|label)", ran.stderr) and not ran.stdout
    assert not scene.objects() and not scene.files()


def test_a_label_outlasts_a_crash(scene: Scene, meddler: Proxy) -> None:
    meddler.reply(rb"^POST \S*uploads", FORBIDDEN, times=99)
    scene.run("backup", "--label", "ä", "--keep-until", "forever", status=1, **through(meddler))
    result = json.loads(scene.run("backup", "--resume").stdout)
    assert (result["label"], result["keep_until"]) == ("ä", "forever")
    assert scene.head(result["filename"])["Metadata"]["label"] == "%C3%A4"


@standin(*GENERATIONS)
def test_colonies_asks_for_a_labelled_backup_by_arguments_and_by_names(site: Site) -> None:
    with site.serve():
        made = [site.succeeds(site.submit(args=["--before 2.30", "forever"]))]
        if site.where.generation == 2026:
            made.append(site.succeeds(site.submit(kwargs={
                "label": "--before 2.30", "keepuntil": "forever"})))
        assert {(each["label"], each["keep_until"]) for each in made} == {
            ("--before 2.30", "forever")}
        wrong: list[dict[str, Any]] = [
            {"args": ["x"]}, {"args": ["x", "2020-01-01"]}, {"args": ["x", "forever", "y"]},
            {"args": ["\n", "forever"]}, {"args": [5, "forever"]}]
        if site.where.generation == 2026:
            wrong += [{"kwargs": {"label": "x"}}, {"args": ["x"], "kwargs": {"label": "y"}}]
        for given in wrong:
            (error,) = site.client.wait(site.submit(**given), FAILED)["errors"]
            assert re.search("keep-until|label", error), error
        assert len(site.stored_keys()) == len(made)


def test_the_last_that_a_verify_restored_stays_until_one_after_it_is(proof: Proof) -> None:
    first = proof.name
    there = {"DB_PORT": str(proof.postgres.port), "FULL_BACKUPS": "1"}
    proof.report(first)
    for _ in range(2):
        made = proof.backup(**there)
        assert made["kept"][f"{proof.prefix}/{first}"] == "the last that a verify restored"
    proof.report(made["filename"], VERIFY_DB_HOST="")  # readable is not restored
    made = proof.backup(**there)
    assert first in proof.objects()
    verdicts = proof.objects()["verified.json"]
    proof.put("verified.json", b"[]")
    ran = proof.run("backup", **there)
    again = json.loads(ran.stdout)
    assert not again["removed"] and made["filename"] in proof.objects()
    assert "may be the last" in again["kept"][made["filepath_s3"][1:]]
    assert "verified.json is left as it is" in ran.stderr
    proof.put("verified.json", verdicts)
    proof.report(again["filename"])
    made = proof.backup(**there)
    assert {each for each in proof.objects() if each.endswith(".bak")} == {
        again["filename"], made["filename"]}


def test_prune_does_what_a_backup_would_and_never_beside_one(scene: Scene) -> None:
    names = [scene.backup()["filename"] for _ in range(3)]
    other = f"{scene.prefix}/backup_77.bak"
    scene.put("backup_77.bak", **scene.head(names[0])["Metadata"] | {"database": "other"})
    few = {"FULL_BACKUPS": "1"}
    dry = scene.run("prune", "--dry-run", **few).stdout
    assert len(scene.objects()) == 4
    said = scene.run("prune", **few).stdout
    assert said == dry and set(scene.objects()) == {names[2], "backup_77.bak"}
    assert [line.split()[0] for line in said.splitlines()] == ["stays", "goes", "goes", "stays"]
    assert f"stays {other} of 1970-01-01" in said and "not provably" in said
    scene.backup(**few, BACKUP_ROLES="off")
    with scene.locked(), scene.start() as executor:
        scene.waiting()
        assert "another backup is running" in scene.run("prune", status=1, **few).stderr
        executor.stop()


def test_prune_says_what_it_cannot_remove_or_list(scene: Scene, meddler: Proxy) -> None:
    names = [scene.backup()["filename"] for _ in range(2)]
    refused = http_answer("403 Forbidden", "AccessDenied", "the account is locked")
    meddler.reply(rb"^DELETE ", refused, times=9)
    ran = scene.run("prune", status=1, FULL_BACKUPS="1", **through(meddler))
    assert "Object Lock" not in ran.stderr
    assert re.search(rf"stays \S*{names[0]} .*: not removed: .*AccessDenied", ran.stdout)
    assert "1 could not be removed" in ran.stderr and len(scene.objects()) == 2
    meddler.reply(rb"^GET \S*list-type", FORBIDDEN, times=9)
    ran = scene.run("prune", status=1, FULL_BACKUPS="1", **through(meddler))
    assert not ran.stdout and "AccessDenied" in ran.stderr
    ran = scene.run("prune", status=1, FULL_BACKUPS="1", DB_PORT="1")
    assert not ran.stdout and len(scene.objects()) == 2


HALF = "DELETE FROM t WHERE id % 3 > 0; VACUUM FULL t"


def test_a_lasting_shrink_is_the_new_normal_once_it_restores_and_an_emptied_one_is_not(
        proof: Proof) -> None:
    there = {"DB_PORT": str(proof.postgres.port), "FULL_BACKUPS": "2"}
    proof.sql("CREATE TABLE IF NOT EXISTS t ()")
    proof.sql("""DROP TABLE t CASCADE; CREATE TABLE t AS SELECT i AS id, md5(i::text) AS text
        FROM generate_series(1, 30000) i""")
    large = [proof.backup(**there)["filename"] for _ in range(2)]
    assert proof.report(**there)["object"].endswith(large[1])
    proof.sql(HALF)
    small = [proof.backup(**there) for _ in range(2)]
    assert all("doubtful" in each["kept"][each["filepath_s3"][1:]] for each in small)
    assert not small[1]["warnings"]
    # The verdict has to be of a later second, also where names have run ahead of the clock.
    becomes_true(lambda: time.time() > int(re.findall("[0-9]+", small[1]["filename"])[0]) + 1)
    assert proof.report(**there)["object"].endswith(small[1]["filename"])  # not the large one
    for night in range(3):
        ran = proof.run("backup", **there)
        last = json.loads(ran.stdout)
        assert last["kept"][last["filepath_s3"][1:]] == "proven"
        said = [*last["warnings"], *re.findall("level=warning .*new normal", ran.stderr)]
        assert len(said) == (0 if night else 2), said
        assert large[1] in proof.objects() and large[0] not in proof.objects()
        told = proof.head(last["filename"])["Metadata"]
        assert (told["normal"], told["before"]) == (str(last["size"]), large[1])
        assert "steady" not in told  # to an older version, which would let the large one go
    assert not any(row["doubtful"] for row in listed(proof).values())
    assert proof.report(**there)["object"].endswith(last["filename"])
    proof.sql("DELETE FROM t; VACUUM FULL t")
    for _ in range(4):
        empty = proof.backup(**there)["filename"]
        proof.report(empty)
    assert {large[1], last["filename"]} < set(proof.objects())
    assert proof.report(**there)["object"].endswith(last["filename"])


def test_a_backup_tells_what_says_later_whether_it_was_good(scene: Scene) -> None:
    """Of the first and of older versions' that is not known, unless all are of a size."""
    scene.sql("CREATE TABLE x AS SELECT repeat('x', 900) || i FROM generate_series(1, 9000) i")

    def told(**settings: str) -> tuple[str, ...]:
        made = scene.backup(FULL_BACKUPS="2", **settings)
        assert made["kept"][made["filepath_s3"][1:]] == "proven"
        metadata = scene.head(made["filename"])["Metadata"]
        assert metadata.get("steady") in (None, str(made["size"]))
        return metadata["compression"], *(each for each in ("steady", "after") if each in metadata)
    plain = {"BACKUP_COMPRESSION": "none"}
    assert [told(**plain) for _ in range(2)] == [("none",), ("none", "steady")]
    assert [told() for _ in range(3)] == [("zstd:1", "steady")] * 3
    assert len(scene.objects()) == 2  # a change starts anew
    scene.sql("TRUNCATE t, x")
    for _ in range(2):
        ran = scene.run("backup", FULL_BACKUPS="2")
        small = json.loads(ran.stdout)["filename"]
        assert "doubtful" in ran.stderr and "after" in scene.head(small)["Metadata"]
    for row in listed(scene).values():
        if not row["doubtful"]:  # by hand
            scene.s3_client.delete_object(Bucket="backup", Key=f"{scene.prefix}/{row['name']}")
    assert told() == ("zstd:1", "steady")


def test_a_small_database_beside_a_large_one_knows_that_its_backups_are_good(scene: Scene) -> None:
    first = scene.backup()
    large = {**scene.head(first["filename"])["Metadata"], "database": "large"}
    scene.put("backup_1700000000.bak", b"x" * 3 * first["size"], **large)
    assert "steady" in scene.head(scene.backup()["filename"])["Metadata"]


def test_neither_the_loss_of_the_last_good_one_nor_that_it_is_not_shown_makes_an_emptied_one_good(
        scene: Scene, meddler: Proxy) -> None:
    """Where older good ones are there still: it may have been damaged."""
    scene.sql("CREATE TABLE x AS SELECT md5(i::text) FROM generate_series(1, 9000) i")
    good = [scene.backup()["filename"] for _ in range(3)]
    scene.sql("TRUNCATE t, x")
    scene.backup()
    meddler.reply(rb"^HEAD \S*" + good[2].encode(), http_reply("403 Forbidden", b""), times=9)
    empty = scene.backup(**through(meddler))
    scene.s3_client.delete_object(Bucket="backup", Key=f"{scene.prefix}/{good.pop()}")
    for _ in range(4):
        assert "doubtful" in empty["kept"][empty["filepath_s3"][1:]]
        assert set(good) < set(scene.objects())
        empty = scene.backup()
