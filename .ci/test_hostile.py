"""Tests of hostile peers: whatever they say, nothing is lost, and nobody waits for ever."""
from __future__ import annotations

import bisect
import collections
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

import backup_executor
from colonies import FAILED, NEVER, RUNNING, SUCCESS, USER_KEY, Refused, identity, recover
from messages import rfc3339
from proxies import FOREVER, Proxy, http_reply, through
from restores import RESTORED, Proof, restored, same_databases
from servers import (
    ASKED,
    LOG_LINE,
    PASSING_ON,
    Executor,
    asking,
    client_programs,
    programs,
    run,
    temporary_folder,
)
from surroundings import Scene, Site, becomes_true, sha256_of, standin


def one_line_each(executor: Executor) -> None:
    """What an executor said so far is a log: line by line, and nothing that a terminal obeys."""
    with executor.changed:
        odd = [line for line in executor.lines
               if not (re.fullmatch(LOG_LINE, line) and line.isprintable())]
    assert not odd, odd[:3]


GONE = "<html>"  # then it looks at its processes and crons again


class Liar:
    """Has a stand-in answer an executor's messages of each type with what was told, each once.

    A told text is the JSON as it goes over the wire: NaN, half a character, 5,000 digits.
    """

    def __init__(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        self.standin, self.real = site.standin, site.standin.answer
        self.told: dict[str, list[str]] = collections.defaultdict(list)
        monkeypatch.setattr(site.standin, "answer", self.answer)

    def answer(self, body: bytes, gone: Callable[[], bool]) -> tuple[int, str, Any]:
        envelope = json.loads(body)
        kind = envelope["payloadtype"]
        ours = recover(envelope["signature"], envelope["payload"]) not in (
            identity(USER_KEY), self.standin.owner)
        with self.standin.lock:
            if ours and self.told[kind]:
                text = self.told[kind].pop(0)
                return 502 if text == GONE else 200, kind, text
        return self.real(body, gone)

    def tell(self, lies: list[tuple[str, str]]) -> None:
        with self.standin.lock:
            for kind, text in lies:
                self.told[kind].append(text)

    def done(self) -> bool:
        with self.standin.lock:
            return not any(self.told.values())


def executor_id(site: Site) -> str:
    with site.standin.lock:
        return site.standin.executors[site.name]["executorid"]


DEEP = "[" * 900 + "]" * 900
ODD = ["null", "true", "0", "-1", "1.5", "1e400", "-1e400", "NaN", "Infinity", "9" * 4000,
       "9" * 5000, '""', r'"\u0000"', r'"\ud800"', r'"a\nb\u001b[31m\r\u2028"', '"../../x"',
       '"/etc/x"', f'"{"x" * 200_000}"', "[]", "{}", "[[]]", '{"a": {}}', DEEP, "5" * 60]
ODD_FIELDS = ("processid", "spec", "state", "assignedexecutorid", "starttime", "submissiontime")


def lies(mine: str) -> list[tuple[str, str]]:
    """Odd answers to each type of message, to an executor of the id MINE."""
    process = {"processid": '"odd"', "spec": '{"funcname": "backup"}', "state": "1",
               "assignedexecutorid": f'"{mine}"', "starttime": '""', "submissiontime": '""'}

    def written(fields: dict[str, str]) -> str:
        return "{" + ", ".join(f'"{name}": {text}' for name, text in fields.items()) + "}"

    found = [(kind, text) for text in [*ODD, "", "{", "\x00"] for kind in (
        "assignprocessmsg", "getprocessesmsg", "getprocessmsg", "getcronsmsg", "getexecutorsmsg")]
    for field in ODD_FIELDS:
        odd = [written({**process, field: text}) for text in ODD]
        found += [("assignprocessmsg", text) for text in odd]
        some = ", ".join(text for text in odd if "99999" not in text)
        found.append(("getprocessesmsg", f"[{some}]"))
        if field in ("state", "assignedexecutorid"):
            found += [("getprocessmsg", text) for text in odd]
    for text in ODD:
        spec = [f'{{"funcname": {text}}}', f'{{"funcname": "verify", "args": {text}}}',
                f'{{"funcname": "backup", "args": [], "kwargs": {text}}}']
        found += [("assignprocessmsg", written({**process, "spec": each})) for each in spec]
        found += [("getcronsmsg", f'[{{"name": "backupcron", "workflowspec": {text}}}]'),
                  ("getcronsmsg", f'[{{"name": {text}, "cronid": {text}}}]')]
    return found


@standin()
def test_odd_answers_of_any_kind_disturb_no_dump_and_keep_no_process_waiting(
        site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    liar, process = Liar(site, monkeypatch), site.submit()
    liar.tell([("getfunctionsmsg", text) for text in (
        "1", "[1]", '["x"]', '{"a": 1}', '[{"funcname": []}]', '[{"funcname": {}}]', DEEP, "")])
    with site.locked() as release, site.serve(
            BACKUP_TIME_SCALE="0.001", BACKUP_CRON="0 0 1 * * *") as executor:
        site.waiting()
        for text in ("NaN", "1e400", "-Infinity", '""', "[]", DEEP, "9" * 5000):
            liar.tell([("getprocessmsg", f'{{"state": {text}, "assignedexecutorid": 1}}'),
                       ("assignprocessmsg", f'{{"processid": {text}}}')])
        becomes_true(lambda: liar.done() or executor.process.poll() is not None)
        release()
        site.succeeds(process)
        assert executor.log.count("Backing up database") == 1
        liar.tell([*[("assignprocessmsg", GONE)] * 80, *lies(executor_id(site))])
        while not liar.done():
            unknown = site.client.wait(site.submit("unknown"), FAILED)
            assert "no function" in unknown["errors"][0]
        site.succeeds(site.submit())
        one_line_each(executor)
        assert executor.process.poll() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive", site.name]
    assert not [name for name in site.files() if not name.endswith(".json")]


VALUES = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats()
    | strategies.text(max_size=9) | strategies.sampled_from(["backup", "verify", NEVER, "x" * 999]),
    lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(
        strategies.sampled_from([*ODD_FIELDS, "funcname", "args", "kwargs"]), inner, max_size=6)
    | strategies.fixed_dictionaries({"processid": inner, "spec": inner}, optional=dict.fromkeys(
        ODD_FIELDS[2:], inner)), max_leaves=12)


@standin()
def test_whatever_json_a_server_answers_the_next_process_is_closed(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    liar = Liar(site, monkeypatch)
    with site.serve(BACKUP_TIME_SCALE="0.0001") as executor:
        site.polling()

        @hypothesis.settings(max_examples=150, derandomize=True)
        @hypothesis.given(strategies.lists(strategies.tuples(strategies.sampled_from(
            ["assignprocessmsg", "getprocessesmsg"]), VALUES), min_size=1, max_size=6))
        def lie(answers: list[tuple[str, Any]]) -> None:
            liar.tell([(kind, json.dumps(value)) for kind, value in answers])
            process = site.submit("unknown")
            assert "no function" in site.client.wait(process, FAILED)["errors"][0]

        lie()
        one_line_each(executor)
        assert executor.process.poll() is None and len(site.standin.processes) >= 150
    assert site.files() == []


ODD_IDS: list[dict[str, Any]] = [
    {"processid": each} for each in (["a", {"b": 1}], None, float("nan"), "a\nb\x1b[0m\ud800")]
LONG_IDS: list[dict[str, Any]] = [{"processid": "x" * 10**6}, {"processid": "../../etc/x"}]
ODD_PROCESSES: list[dict[str, Any]] = [
    {"state": float("inf")}, {"state": [1]}, {"starttime": {"deep": ["x" * 200_000]}},
    {"submissiontime": "9" * 200_000}, {"spec": None}, {"spec": {"funcname": ["backup"]}},
    {"spec": {"funcname": "verify", "args": {"a": "x" * 200_000}}},
    {"spec": {"funcname": "x" * 10**6}}, {"spec": {"funcname": "backup", "kwargs": "x"}}]


@standin()
@pytest.mark.parametrize("odd", [ODD_IDS, LONG_IDS, ODD_PROCESSES], ids=["ids", "long", "others"])
def test_odd_processes_that_stay_assigned_to_it_keep_no_other_waiting(
        site: Site, odd: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where it meets them anew as soon as it has done with them."""
    site.standin.longest = 0.5  # it looks again when a poll has ended
    real, listed = site.standin.on_getprocess, site.standin.on_getprocesses
    with site.serve(BACKUP_TIME_SCALE="0.001") as executor:
        site.polling()
        processes = [{"processid": f"odd-{number}", "state": RUNNING, "starttime": rfc3339(),
                      "assignedexecutorid": executor_id(site), "spec": {"funcname": "backup"},
                      **fields} for number, fields in enumerate(odd)]
        monkeypatch.setattr(site.standin, "on_getprocess", lambda caller, fields: next(
            (each for each in processes if each["processid"] == fields["processid"]), None)
            or real(caller, fields))
        monkeypatch.setattr(site.standin, "on_getprocesses", lambda caller, fields: [
            *processes, *(listed(caller, fields) or [])])
        looked = site.called("getprocessesmsg")
        site.client.wait(site.submit("unknown"), FAILED)
        site.standin.wait_call("getprocessesmsg", count=looked + 2)  # they are in its queue
        site.succeeds(site.submit())
        assert "no function" in site.client.wait(site.submit("unknown"), FAILED)["errors"][0]
        one_line_each(executor)
        assert max(map(len, executor.lines)) < 2000


@standin()
def test_one_odd_time_of_a_server_lets_no_later_process_succeed_without_a_backup(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    real = site.standin.on_assignprocess

    def ahead(caller: str, fields: dict[str, Any], gone: Callable[[], bool]) -> Any:
        ended = any(each["state"] == SUCCESS for each in site.standin.processes.values())
        if ended and fields["timeout"] > 0:  # the poll that finds no work, without its 10 s
            monkeypatch.undo()
            raise Refused(404, "No process available for assignment")
        process = json.loads(real(caller, fields, gone))
        return {**process, "starttime": "9999-01-01T00:00:00Z"}

    monkeypatch.setattr(site.standin, "on_assignprocess", ahead)
    first = site.submit()
    with site.serve():
        assert site.succeeds(first)["starttime"].startswith("9999")
        site.standin.wait_call("assignprocessmsg", 404)
        site.polling()
        assert site.succeeds(site.submit())["filename"] != site.succeeds(first)["filename"]
    assert len(site.stored_keys()) == 2


@pytest.mark.parametrize("said", [
    "", "[]", "1", '{"postgresql": "devel", "size": 1}', DEEP, '{"postgresql": 17, "size": {}}',
    '{"postgresql": "' + "9" * 5000 + '"}'], ids=["nothing", "a list", "a number", "no version",
                                                  "deep", "no text", "many digits"])
def test_what_a_database_server_says_ends_in_one_line_never_in_a_traceback(
        scene: Scene, tmp_path: Path, said: str) -> None:
    (tmp_path / "said").write_text(said)
    path = programs(tmp_path / "odd", psql=f"#!/bin/sh\nexec cat '{tmp_path}/said'\n")
    error = scene.failure(PATH=path)
    assert re.fullmatch(LOG_LINE, error) and len(error) < 2000


@standin()
def test_a_process_is_closed_with_what_an_odd_database_server_caused(
        site: Site, tmp_path: Path) -> None:
    path = programs(tmp_path / "odd", psql="#!/bin/sh\necho '{\"postgresql\": \"devel\"}'\n")
    with site.serve(PATH=path) as executor:
        [error] = site.client.wait(site.submit(), FAILED)["errors"]
        server = f"127.0.0.1:{site.postgres.port}"
        assert error == (f"Looking at the database: {server} gives an answer that cannot be read: "
                         "'{\"postgresql\": \"devel\"}\\n'")
        one_line_each(executor)


@pytest.mark.parametrize("answer", ["gateway", '{"gateway": 1}'], ids=["text", "object"])
@pytest.mark.parametrize(("about", "step"), [
    ("pg_control_system", "Looking at the database"), ("pg_database_size", "Looking at its size"),
    ("relfilenode", "Reading the tables"), ("::json", "Reading the schemas")])
def test_something_else_that_answers_in_a_servers_place_is_named_with_the_step(
        scene: Scene, tmp_path: Path, about: str, step: str, answer: str) -> None:
    real = client_programs()[0]
    path = programs(tmp_path / "odd", psql=f"""{ASKED}
        case $asked in *{asking(about)}*) echo '{answer}'; exit;; esac
        {PASSING_ON.format(real)}""")
    error = scene.failure(PATH=path, BACKUP_TIME_SCALE="0.01").replace("\\", "")
    server = f"127.0.0.1:{scene.postgres.port}"
    assert f"{step}: {server} gives an answer that cannot be read: '{answer}" in error
    assert scene.files() == [] and not scene.objects()


ODD_METADATA = [{"database": "%0a%1b[31m%ff"}, {"sha256": ""}, {"pg-dump": "9" * 5000},
                {"pg-dump": "%"}, {"tables": "x"}, {"timescaledb": "1'; SELECT 1; --"},
                {"system-identifier": "\u00e9\u202e"}]


@pytest.mark.parametrize("odd", ODD_METADATA, ids=[next(iter(each)) for each in ODD_METADATA])
def test_odd_metadata_are_shown_on_one_line_and_end_in_no_traceback(
        scene: Scene, meddler: Proxy, new: str, odd: dict[str, str]) -> None:
    name = scene.given_backup()
    for key, value in odd.items():
        meddler.answer = lambda data, key=key, value=value: re.sub(  # type: ignore[misc]
            rf"(?im)^(x-amz-meta-{key}: ).*?\r$", lambda found: found[1] + value + "\r",
            data.decode("latin-1")).encode("utf-8")
    settings = through(meddler, 0.01)
    listed = scene.run("list", **settings).stdout.splitlines()
    assert len(listed) == 2 and all(line.isprintable() for line in listed)
    for command in (["verify", name], ["restore", name, "--database", new], ["backup"]):
        ran = run({**scene.settings, **settings}, *command)
        lines = ran.stderr.splitlines()
        assert ran.returncode in (0, 1) and "Traceback" not in ran.stderr
        assert all(re.fullmatch(LOG_LINE, line) and line.isprintable() for line in lines)
        assert sum("level=error" in line for line in lines) == ran.returncode


def test_names_like_a_backups_are_neither_shown_nor_removed(scene: Scene) -> None:
    metadata = scene.head(scene.given_backup())["Metadata"]
    names = {f"backup_{name}" for name in (
        "1.bak ", "1.bak\n", "\n1.bak", "%31.bak", "\uff11.bak", "1.bak%00",
        "+1.bak", "1e3.bak", "0x1.bak", "1_0.bak", f"{10**18}.bak", "1" * 200 + ".bak")}
    for name in names:
        scene.put(name, **metadata)
    result = scene.backup(FULL_BACKUPS="1")
    assert set(scene.objects()) == names | {result["filename"]}
    assert [row["name"] for row in json.loads(scene.run("list", "--json").stdout)] == [
        result["filename"]]


def test_a_backup_of_the_far_future_does_not_make_names_that_do_not_count(
        scene: Scene, new: str) -> None:
    first = scene.backup()["filename"]
    metadata, body = scene.head(first)["Metadata"], scene.objects()[first]
    for seconds in (10**18 - 1, 10**11):
        scene.put(f"backup_{seconds}.bak", body, **metadata)
    made = [scene.backup(FULL_BACKUPS="4")["filename"] for _ in range(3)]
    assert all(re.fullmatch(r"backup_\d{10}\.bak", name) for name in made)
    kept = [f"backup_{10**18 - 1}.bak", f"backup_{10**11}.bak", made[2], made[1]]
    assert [row["name"] for row in json.loads(scene.run("list", "--json").stdout)] == kept
    restored(scene, "latest", "--database", new)
    same_databases(scene, new)


class Crowd:
    """What lists, between the objects there are, as many keys as told."""

    def __init__(self, scene: Scene, seconds: range) -> None:
        self.scene, self.listed = scene, 0
        self.keys = sorted([*(f"{scene.prefix}/backup_{each}.bak" for each in seconds),
                            f"{scene.prefix}/backup_{seconds[0]}.bak/../x"])

    def page(self, asked: bytes) -> Iterator[bytes]:
        """The answer to a request for a listing."""
        after = re.findall(r"start-after=([^& ]*)|$", asked.decode())[0].replace("%2F", "/")
        there = self.scene.s3_client.list_objects_v2(
            Bucket="backup", Prefix=f"{self.scene.prefix}/b")
        since = bisect.bisect_right(self.keys, after)
        left = sorted([(key, 1, "x") for key in self.keys[since:since + 1001]] + [
            (item["Key"], item["Size"], item["ETag"]) for item in there.get("Contents", [])
            if item["Key"] > after])
        items = "".join(
            f"<Contents><Key>{key}</Key><Size>{size}</Size><ETag>{tag}</ETag></Contents>"
            for key, size, tag in left[:1000])
        self.listed += len(left[:1000])
        yield http_reply("200 OK", (
            f"<ListBucketResult><IsTruncated>{str(len(left) > 1000).lower()}</IsTruncated>{items}"
            "</ListBucketResult>").encode())


@pytest.mark.parametrize("first", [10**9, 10**10], ids=["older", "of the future"])
def test_names_without_end_that_somebody_put_there_hide_no_backup_and_cost_little(
        scene: Scene, first: int, monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str]) -> None:
    results = [scene.backup() for _ in range(3)]
    made = [result["filename"] for result in results]
    crowd = Crowd(scene, range(first, first + 20_000))
    with Proxy(scene.s3.port) as proxy:
        proxy.reply(rb"^GET \S*list-type=2", crowd.page, FOREVER)
        s3 = scene.own_s3(**through(proxy), FULL_BACKUPS="2")
        monkeypatch.setattr(backup_executor, "NAMES", 200)  # each costs a request
        found = s3.backups()
        assert len(found) == 200 and crowd.listed == 20_004
        assert [os.path.basename(each.key) for each in found if each.metadata] == made
        assert capfd.readouterr().err.count("level=warning") == 1
        del crowd.keys[5000:]  # enough to be too many
        report = backup_executor.prune(
            s3, backup_executor.Dump("", **results[2]), s3.backups())
        assert report["removed"] == [f"{scene.prefix}/{made[0]}"]
        assert os.path.basename(backup_executor.chosen(s3, "latest").key) == made[2]
        scene.put("backup_7.bak")  # too old to be among those that are looked at
        assert backup_executor.chosen(s3, "backup_7.bak").size == len(b"somebody's")
        # the one that goes, and the last good one, are looked at once more
        assert proxy.seen(rb"^HEAD ") == 603
    assert sorted(scene.objects()) == sorted([*made[1:], "backup_7.bak"])


def test_an_object_with_a_backups_metadata_that_is_no_archive_fails_where_it_is_read(
        proof: Proof) -> None:
    good, body = proof.name, b"no archive, but as large as one " * 9999
    metadata = {**proof.metadata, "sha256": sha256_of(body)}
    name = proof.again(body, **metadata)
    assert re.match("failed: .*pg_restore", proof.report(name, status=1)["verdict"])
    assert re.match("failed", proof.verdicts()[name] or "")
    local = {"DB_PORT": str(proof.postgres.port)}
    error = proof.refusal("restore", name, "--database", f"{proof.database}_new", **local)
    assert "pg_restore" in error and len(error) < 2000
    proof.backup(FULL_BACKUPS="1", **local)
    assert good not in proof.objects()


# Programs that its own content starts: whoever evaluates it, with a superuser's rights.
TRAPS = """CREATE FUNCTION public.runs(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
    COPY (SELECT 1) TO PROGRAM 'cat >>{marker}'; RETURN $1; END $$;
    CREATE FUNCTION public.trap(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
    'BEGIN RETURN public.runs($1); END';
    CREATE TABLE trapped (i int {check}); INSERT INTO trapped VALUES (1);
    {more}"""
CONTENTS = {"check": ("CHECK (public.trap(i) > 0)", ""),
            "generated": ("", ("ALTER TABLE trapped ADD g int GENERATED ALWAYS AS (public.trap(i))"
                               " STORED")),
            "index": ("", "CREATE INDEX ON trapped (public.trap(i))"),
            "view": ("", "CREATE MATERIALIZED VIEW seen AS SELECT public.trap(i) FROM trapped")}


@pytest.fixture
def marker() -> Iterator[Path]:
    """A file that a server's programs may write."""
    with temporary_folder() as folder:
        folder.chmod(0o777)
        yield folder / "marker"


@pytest.mark.parametrize("content", CONTENTS)
def test_an_archives_programs_run_only_where_a_superuser_restores_it(
        proof: Proof, content: str, marker: Path) -> None:
    check, more = CONTENTS[content]
    proof.sql(TRAPS.format(marker=marker, check=check, more=more))
    assert marker.exists()
    marker.unlink()
    proof.backup(DB_PORT=str(proof.postgres.port))
    assert proof.report(VERIFY_DB_HOST="")["verdict"] == "readable"
    assert proof.verdicts()[proof.name] == "readable"
    assert not marker.exists()
    role = f"maker_{secrets.token_hex(4)}"
    proof.scratch.sql(f"CREATE ROLE {role} LOGIN CREATEDB PASSWORD 'maker'")
    as_role = {"VERIFY_DB_USER": role, "VERIFY_DB_PASSWORD": "maker"}
    if content == "view":
        assert any("permission denied" in each for each in proof.report(**as_role)["not_proven"])
    else:
        assert "permission denied" in proof.refusal("verify", **as_role)
    assert not marker.exists()
    proof.scratch.sql(f"DROP ROLE {role}")
    assert proof.report()["verdict"] == RESTORED
    assert marker.exists()


def test_nothing_of_a_databases_owner_is_run_by_who_backs_it_up(
        scene: Scene, marker: Path) -> None:
    functions = "".join(f"""CREATE FUNCTION evil.{head} LANGUAGE plpgsql AS $$ BEGIN
        COPY (SELECT 1) TO PROGRAM 'touch {marker}'; RETURN {value}; END $$;""" for head, value in (
        ("current_database() RETURNS name", f"'{scene.database}'"),
        ("current_setting(text) RETURNS text", "'17.0'"), ("pg_database_size(name) RETURNS bigint",
                                                           "1"),
        ("pg_backend_pid() RETURNS int", "1"), ("pg_terminate_backend(int) RETURNS bool", "true")))
    scene.sql(f"CREATE SCHEMA evil; {functions}"
              f"ALTER DATABASE {scene.database} SET search_path = evil, pg_catalog")
    result = scene.backup()
    assert result["database"] == scene.database and result["postgresql"] != "17.0"
    assert scene.run("check").returncode == 0 and not marker.exists()
