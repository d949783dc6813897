"""Tests of signatures, keys and times."""
from __future__ import annotations

import timeit
from datetime import datetime, timedelta, timezone
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies

import backup_executor
from colonies import OWNER_KEY, identity, recover, sign
from servers import run
from surroundings import EXECUTOR_KEY
from vectors import INVALID_KEYS, VECTOR_TEXTS, VECTORS

# ---- Tests of the stand-in ---------------------------------------------------------------------

def test_vectors_agree_with_an_independent_library() -> None:
    assert len(VECTORS) == 20
    for key, owner, signatures in VECTORS:
        assert identity(key) == owner
        assert [sign(key, text) for text in VECTOR_TEXTS] == signatures
        assert {recover(signature, text)
                for signature, text in zip(signatures, VECTOR_TEXTS)} == {owner}


# ---- Signatures and keys -----------------------------------------------------------------------

def test_identities_and_signatures_equal_those_of_libsecp256k1() -> None:
    for key, owner, signatures in VECTORS:
        assert backup_executor.identity(int(key, 16)) == owner
        for text, signature in zip(VECTOR_TEXTS, signatures):
            assert backup_executor.sign(int(key, 16), text) == signature


@hypothesis.given(strategies.integers(1, backup_executor.ORDER - 1), strategies.text())
def test_any_key_signs_any_text_as_libsecp256k1_does(key: int, text: str) -> None:
    assert backup_executor.identity(key) == identity(f"{key:064x}")
    assert backup_executor.sign(key, text) == sign(f"{key:064x}", text)


def test_a_signature_takes_under_10_ms() -> None:
    key = int(EXECUTOR_KEY, 16)  # the best of many: another program may be in the way
    assert min(timeit.repeat(lambda: backup_executor.sign(key, "text"), number=1, repeat=50)) < 0.01


def test_the_derived_key_is_that_of_the_contract() -> None:
    key = backup_executor.own_key(int(OWNER_KEY, 16), "dev", "backup-timescaledb-statefulset-0")
    assert f"{key:x}" == "b534db47fd4edbbecd9a512cd9b9515525975eb32a177e7288d2b0aec323dc80"


@pytest.mark.parametrize("key", INVALID_KEYS)
def test_a_bad_key_is_refused_without_being_repeated(key: str) -> None:
    with pytest.raises(ValueError, match="is not a private key") as error:
        backup_executor.private_key(key)
    assert not key or key not in str(error.value)


def test_all_wrong_settings_are_named_in_one_line_without_the_keys(tmp_path: Path) -> None:
    owner, own = INVALID_KEYS[-1], "5e" * 31
    ended = run({"COLONIES_SERVER_PORT": "0", "COLONIES_TLS": "perhaps", "FULL_BACKUPS": "none",
                 "COLONIES_COLONY_PRVKEY": owner, "COLONIES_PRVKEY": own})
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    for name in ("COLONIES_SERVER_HOST", "COLONIES_SERVER_PORT", "COLONIES_TLS", "FULL_BACKUPS",
                 "COLONIES_COLONY_NAME", "COLONIES_COLONY_PRVKEY", "COLONIES_EXECUTOR_PRVKEY",
                 "AWS_S3_BUCKET_NAME"):
        assert name in ended.stderr
    assert owner not in ended.stderr and own not in ended.stderr


@hypothesis.given(strategies.integers(10**5, 2**33), strategies.integers(0, 10**9 - 1),
                  strategies.integers(-14 * 60, 14 * 60))
def test_a_servers_times_are_compared_to_the_nanosecond(
        seconds: int, fraction: int, minutes: int) -> None:
    local = datetime.fromtimestamp(seconds, timezone(timedelta(minutes=minutes))).isoformat()
    text = f"{local[:19]}.{fraction:09d}".rstrip("0").rstrip(".") + local[19:]
    assert backup_executor.server_time(text) == seconds * 10**9 + fraction
    shifted = seconds + minutes * 60
    assert backup_executor.server_time(f"{text[:-6]}Z") == shifted * 10**9 + fraction
