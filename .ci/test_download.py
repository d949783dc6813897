"""Tests of getting a backup back through a network that cuts, from a name that changes hands."""
from __future__ import annotations

import itertools
import json
import re

import pytest

from proxies import Proxy, through
from restores import databases
from surroundings import Scene, one_error

GETTING = rb"^GET \S*/backup_\d+\.bak "
PATIENCE = 0.001  # a BACKUP_TIME_SCALE at which S3 is waited for for one second


def ranges(meddler: Proxy) -> list[tuple[int, int]]:
    """What was asked for of a backup, in order."""
    return [(int(found[1]), int(found[2])) for request in meddler.requests
            if re.match(GETTING, request)
            and (found := re.search(rb"(?i)range: bytes=(\d+)-(\d+)", request))]


def test_a_download_that_is_cut_again_and_again_goes_on_from_where_it_was(
        big: Scene, meddler: Proxy) -> None:
    size = big.backup()["size"]
    meddler.shear(GETTING, 300_000, times=10**6)
    report = json.loads(big.run("verify", **through(meddler, PATIENCE)).stdout)
    assert report["sha256"] == "checked" and report["verdict"] == "readable"
    asked = ranges(meddler)
    assert len(asked) > size // 300_000 > 100
    assert len(set(asked)) == len(asked)  # nothing that came is asked for again
    assert len({end for _, end in asked}) == -(-size // 2**24)  # each rest is of one piece


def test_a_download_that_gets_nowhere_ends_when_s3_was_waited_for(
        big: Scene, new: str, meddler: Proxy) -> None:
    name = big.backup()["filename"]
    meddler.shear(GETTING, 1000, times=10**6)
    error = one_error(big.run(
        "restore", name, "--database", new, status=1, **through(meddler, PATIENCE)))
    assert "get_object" in error and new not in databases(big.postgres)
    assert len(set(ranges(meddler))) <= 3 < len(ranges(meddler))


@pytest.mark.parametrize("checksum", [True, False], ids=["with a checksum", "without"])
@pytest.mark.parametrize("which", ["latest", "by its name"])
def test_no_download_is_of_two_objects(
        big: Scene, meddler: Proxy, which: str, checksum: bool) -> None:
    name = big.backup()["filename"]
    body, metadata = big.objects()[name], big.head(name)["Metadata"] if checksum else {}
    big.put(name, body, **metadata)
    asked = itertools.count()

    def replace(data: bytes) -> bytes:
        """What was got first is of one object, the next of another, of the same size."""
        if re.match(GETTING, data) and next(asked) == 1:
            big.put(name, body[:-1] + b"?", **metadata)
        return data

    meddler.shear(GETTING, 300_000)
    meddler.request = replace
    ran = big.run("verify", *[name] * (which != "latest"), status=1, **through(meddler))
    assert f"{name}: another object has this name by now" in one_error(ran)
    assert not ran.stdout and list(big.objects()) == [name]  # nor is any verdict noted
