"""Tests of restore."""
from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

import backup_executor
from restores import (
    HEADER,
    PROPERTIES,
    RESTORED,
    RICH,
    archive,
    called,
    databases,
    governed,
    identifier,
    refused,
    restored,
    same_databases,
    stored,
    tablespaces,
    with_little_room,
)
from servers import Postgres, error_lines, run, server_folder
from surroundings import FILLED, Generations, Scene, sha256_of


def test_the_summary_counts_what_is_there(scene: Scene, new: str) -> None:
    scene.sql(RICH)
    name = stored(scene, archive(scene))
    said = restored(scene, name, "--database", new).stdout
    tables = {table: print_.split()[0] for table, print_ in scene.postgres.fingerprint(new).items()
              if "rows" in print_ and "split_" not in table}  # partitions count with their parent
    assert {**tables, "public.split": "1000"} == {
        table: count for count, table in re.findall(r"(?m)^ *(\d+)  (\S.*)$", said)}
    for fact in (name, new, "6 tables", "4591 rows", "second", "checked"):
        assert fact in said
    size = int(scene.postgres.sql("SELECT pg_database_size(current_database())", new))
    [told] = re.findall(r"(\d+) bytes", said)
    assert 0.9 * size < int(told) < 1.1 * size


@pytest.mark.parametrize("name", [
    "plain", "x=y", "--schema-only", "a'b\"c d", "-- Name: x; Type: DATABASE", "é$1 `id`"])
def test_properties_come_from_the_archive_and_leave_the_old_database_alone(
        scene: Scene, new: str, name: str) -> None:
    name += secrets.token_hex(4)
    called(scene, name)
    governed(scene, "it's\n\\\\ \"one\";\n-- Name: x")
    scene.backup()
    then = scene.sql(PROPERTIES)
    scene.sql("""ALTER DATABASE {0} OWNER TO postgres; ALTER DATABASE {0} RESET ALL; COMMENT ON
        DATABASE {0} IS 'old'; ALTER DATABASE {0} CONNECTION LIMIT 9; ALTER DATABASE {0} SET
        work_mem = '1MB'; GRANT CONNECT ON DATABASE {0} TO PUBLIC""".format(identifier(name)))
    now = scene.sql(PROPERTIES)
    restored(scene, "latest", "--database", name + " new")
    assert scene.postgres.sql(PROPERTIES, name + " new") == then != now == scene.sql(PROPERTIES)
    same_databases(scene, name + " new")


def test_a_database_whose_name_pg_restore_cannot_write_is_restored(scene: Scene, new: str) -> None:
    called(scene, f"two\nlines {new}")
    scene.postgres.sql(f"ALTER DATABASE {identifier(scene.database)} CONNECTION LIMIT 17")
    said = restored(scene, stored(scene, archive(scene), database="x"), "--database", new, status=1)
    assert re.search("level=error .*not restored", said.stderr)
    same_databases(scene, new)


def test_each_table_is_counted_where_the_server_has_no_room_for_the_locks_of_all(
        scene: Scene, tmp_path: Path) -> None:
    """Nor is a partition at another server asked, whose rows are in no dump."""
    scene.sql("""DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE format('CREATE TABLE x%s (a int UNIQUE,
        b int UNIQUE, c int UNIQUE, d int UNIQUE)', i); COMMIT; END LOOP; END $$;
        CREATE TABLE events (i int) PARTITION BY RANGE (i);
        CREATE TABLE hot PARTITION OF events FOR VALUES FROM (0) TO (9) PARTITION BY HASH (i);
        CREATE TABLE "hot; \\! 'this" PARTITION OF hot FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE "hot ""that" PARTITION OF hot FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        INSERT INTO events SELECT generate_series(0, 8);
        CREATE FOREIGN DATA WRAPPER none; CREATE SERVER away FOREIGN DATA WRAPPER none;
        CREATE FOREIGN TABLE cold PARTITION OF events FOR VALUES FROM (-9) TO (0) SERVER away""")
    (tmp_path / "a").write_bytes(archive(scene))
    with server_folder() as folder, Postgres(folder / "small") as small:
        for setting in ("max_connections = 10", "max_locks_per_transaction = 10",
                        "max_wal_senders = 0", "max_worker_processes = 0", "wal_level = minimal",
                        "autovacuum = off"):
            small.sql(f"ALTER SYSTEM SET {setting}")
        small.stop()
        small.start()
        said = scene.run("restore", "--file", str(tmp_path / "a"), "--database", "many", "--jobs",
                         "1", DB_PORT=str(small.port), DB_PASSWORD=small.password).stdout
        assert len(re.findall(r"(?m)^ +0  public\.x\d+$", said)) == 300
        assert re.findall(r"(?m)^ +(\d+)  public\.([^x].*)$", said) == [
            ("9", "events"), ("500", "t")]


def test_what_cannot_be_counted_is_named_and_loses_nothing(
        scene: Scene, new: str, restorer: dict[str, str]) -> None:
    scene.sql("""CREATE TABLE invoices AS SELECT generate_series(1, 900) AS i;
        CREATE POLICY mine ON invoices USING (i < 9); ALTER TABLE invoices ENABLE ROW LEVEL
        SECURITY; ALTER TABLE invoices FORCE ROW LEVEL SECURITY""")
    name = stored(scene, archive(scene))
    ran = restored(scene, name, "--database", new, "--no-owner", status=1, **restorer)
    [error] = error_lines(ran.stderr)
    assert "public.invoices: not counted: " in error and "row-level security" in error
    assert "500  public.t\n" in ran.stdout and "invoices" not in ran.stdout
    assert scene.postgres.sql("SELECT count(*) FROM invoices", new) == "900"
    report = json.loads(scene.run("verify", **restorer).stdout)
    assert report["verdict"] == "restored, not all counted" and report["rows"] == {"public.t": 500}
    assert any("public.invoices: not counted" in line for line in report["not_proven"])
    assert " not all " in scene.run("list").stdout


@pytest.mark.parametrize("how", [
    "ENCODING LATIN1 LOCALE 'C'",
    "ENCODING UTF8 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'"],
    ids=["LATIN1", "builtin"])
def test_encoding_and_locale_are_those_of_the_source(scene: Scene, new: str, how: str) -> None:
    name = f"other_{secrets.token_hex(4)}"
    scene.postgres.sql(f"CREATE DATABASE {name} TEMPLATE template0 {how}")
    scene.database = name
    scene.sql(r"CREATE TABLE t AS SELECT U&'gr\00fc\00df' AS text")
    tables = "SET client_encoding = 'UTF8'; {0} TABLE é {1}; {0} TABLE è {1}"
    scene.sql(tables.format("CREATE", "()"))
    said = restored(scene, stored(scene, archive(scene)), "--database", new).stdout
    assert all(f' 0  public."{table}"\n' in said for table in "éè")
    for database in (name, new):
        scene.postgres.sql(tables.format("DROP", ""), database)
    assert scene.postgres.sql(PROPERTIES, new) == scene.sql(PROPERTIES)
    assert scene.postgres.fingerprint(new) == scene.postgres.fingerprint(name)


SPACES = """SELECT d.spcname, t.spcname FROM pg_class c JOIN pg_tablespace t ON t.oid =
    reltablespace, pg_database JOIN pg_tablespace d ON d.oid = dattablespace
    WHERE relname = 'apart' AND datname = current_database()"""


def test_a_restore_keeps_tablespaces_and_leaves_nothing_where_the_server_lacks_one(
        scene: Scene, new: str) -> None:
    with tablespaces(scene.postgres, 2) as (one, two):
        scene.postgres.sql(f"ALTER DATABASE {scene.database} SET TABLESPACE {one}")
        scene.sql(f"CREATE TABLE apart (i int) TABLESPACE {two}")
        name = stored(scene, archive(scene))
        for space in (one, two):
            scene.postgres.sql(f"ALTER TABLESPACE {space} RENAME TO {space}_else")
            error = refused(scene, name, "--database", new)
            assert f"lacks these tablespaces: {space};" in error
            scene.postgres.sql(f"ALTER TABLESPACE {space}_else RENAME TO {space}")
        restored(scene, name, "--database", new)
        same_databases(scene, new)
        assert scene.postgres.sql(SPACES, new) == scene.sql(SPACES) == f"{one}|{two}"
        scene.postgres.drop(scene.database, new)


@pytest.mark.parametrize("named", ["postgres", "ghost"])
@pytest.mark.parametrize("where", ["TABLE t", "DATABASE {}"])
def test_what_reads_like_a_dumps_header_is_neither_obeyed_nor_believed(
        scene: Scene, new: str, where: str, named: str) -> None:
    role, victim, comment = (f"{word}_{secrets.token_hex(4)}" for word in ("r", "victim", "c"))
    scene.postgres.sql(f"CREATE ROLE {role}; CREATE DATABASE {victim}")
    for what, kind, statement in (
            (f"DATABASE {scene.database}", "ACL", f"ALTER ROLE {role} SUPERUSER;"),
            (scene.database, "DATABASE PROPERTIES", f"DROP DATABASE {victim};"),
            (scene.database, "DATABASE", f"CREATE DATABASE x WITH OWNER = {role};"),
            ("x", "ACL", f"GRANT SELECT ON TABLE t TO {named};")):
        comment += HEADER.format(what, kind, named) + statement
    scene.sql(f"COMMENT ON {where.format(scene.database)} IS $${comment}$$")
    try:
        restored(scene, stored(scene, archive(scene)), "--database", new)
        same_databases(scene, new)
        assert scene.postgres.sql(PROPERTIES, new) == scene.sql(PROPERTIES)
    finally:
        assert scene.sql(f"SELECT rolsuper FROM pg_roles WHERE rolname = '{role}'") == "f"
        scene.postgres.sql(f"DROP DATABASE {victim}")


def test_a_role_that_only_a_tables_name_mentions_is_not_asked_for(scene: Scene, new: str) -> None:
    scene.sql('CREATE TABLE "a TO ghost" (id int); GRANT SELECT ON "a TO ghost" TO PUBLIC')
    restored(scene, stored(scene, archive(scene)), "--database", new)
    same_databases(scene, new)


def test_a_security_label_that_the_server_does_not_know_asks_for_no_role(
        scene: Scene, new: str) -> None:
    scene.sql("INSERT INTO pg_shseclabel SELECT oid, 'pg_database'::regclass, 'guard', 'secret'"
              " FROM pg_database WHERE datname = current_database()")
    said = restored(scene, stored(scene, archive(scene)), "--database", new, status=1).stderr
    [error] = error_lines(said)
    assert "SECURITY LABEL FOR guard" in error and "lacks" not in error
    same_databases(scene, new)


def test_a_time_limit_for_statements_does_not_end_a_restore(scene: Scene, new: str) -> None:
    scene.sql("CREATE TABLE many AS SELECT i FROM generate_series(1, 400000) i")
    name = stored(scene, archive(scene))
    restored(scene, name, "--database", new, PGOPTIONS="-c statement_timeout=20ms")
    same_databases(scene, new)


def test_public_and_roles_in_upper_case_are_known_for_what_they_are(scene: Scene, new: str) -> None:
    role = f"UPPER_{new.upper()}"
    scene.sql(f"""CREATE ROLE "{role}"; GRANT SELECT ON t TO "{role}"; CREATE FOREIGN DATA WRAPPER
        w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE USER MAPPING FOR PUBLIC SERVER s""")
    name = stored(scene, archive(scene))
    restored(scene, name, "--database", new)
    scene.sql(f'ALTER ROLE "{role}" RENAME TO "{role}_2"')
    assert role in refused(scene, name, "--database", f"{new}_2")


def test_a_restore_is_told_in_any_encoding(scene: Scene, new: str) -> None:
    scene.sql('CREATE TABLE "tøst☃" (i int)')
    name = stored(scene, archive(scene))
    assert "tøst☃" in restored(
        scene, name, "--database", new, PYTHONIOENCODING="ascii").stdout
    refused(scene, name, "--database", "\udcff")


@pytest.mark.parametrize("extension", [
    "", "CREATE EXTENSION pg_trgm", "CREATE SCHEMA ext; CREATE EXTENSION hstore SCHEMA ext"],
    ids=["", "extension", "schema"])
def test_an_empty_database_is_used_also_one_with_extensions(
        scene: Scene, new: str, extension: str) -> None:
    scene.postgres.run("createdb", new)
    scene.postgres.sql(extension, new)
    before = databases(scene.postgres)
    restored(scene, stored(scene, archive(scene)), "--database", new)
    after = databases(scene.postgres)
    assert {name: oid for name, oid in after.items() if oid not in before.values()} == {
        new: after[new]}
    assert [re.sub("[0-9]+$", "", name) for name, oid in after.items() if oid == before[new]] == [
        "before_restore_"]
    same_databases(scene, new)


def test_a_database_that_is_not_empty_is_refused(scene: Scene, new: str) -> None:
    name = stored(scene, archive(scene))
    for number, content in enumerate((
            "CREATE TABLE x (id int)", "CREATE SCHEMA x", "SELECT lo_create(1)",
            "CREATE PUBLICATION x", "CREATE CAST (int AS inet) WITH INOUT",
            "CREATE FOREIGN DATA WRAPPER x", "CREATE EXTENSION pg_trgm; CREATE TABLE x (id int)",
            "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC")):
        scene.postgres.run("createdb", f"{new}_{number}")
        scene.postgres.sql(content, f"{new}_{number}")
        error = refused(scene, name, "--database", f"{new}_{number}")
        assert f"{new}_{number}" in error and "not empty" in error, content


def test_a_name_that_cannot_be_given_is_refused(scene: Scene) -> None:
    backup = stored(scene, archive(scene))
    for name, status in (("", 2), ("x" * 64, 2), ("é" * 32, 2), ("postgres", 2), ("template1", 2),
                         ("template0", 1)):
        refused(scene, backup, "--database", name, status=status)


def test_a_name_that_is_not_there_is_refused(scene: Scene, new: str) -> None:
    stored(scene, archive(scene))
    for name in ("backup_1.bak", f"{scene.prefix}/", "", "verified.json"):
        assert "no backup" in refused(scene, name, "--database", new)
    scene.s3_client.delete_object(Bucket="backup", Key=f"{scene.prefix}/backup_1700000000.bak")
    assert "no backup" in refused(scene, "latest", "--database", new)


def test_a_pipe_in_an_archives_place_is_named(scene: Scene, new: str, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    writer = os.open(pipe, os.O_RDWR)  # which waits for no reader
    assert f"{pipe}: Illegal seek" in refused(scene, "--file", str(pipe), "--database", new)
    os.close(writer)


def test_a_senseless_restore_is_an_error_of_the_command_line(scene: Scene, new: str) -> None:
    stored(scene, archive(scene))
    before = databases(scene.postgres)
    senseless: list[list[str]] = [[], ["latest", "--file", "/dev/null"], ["latest", "--jobs", "0"],
                                  ["latest", "--jobs", "-1"], ["--file", ""]]
    for arguments in senseless:
        restored(scene, "--database", new, *arguments, status=2)
    assert databases(scene.postgres) == before


def test_latest_of_a_server_that_forgot_the_metadata_takes_no_other_databases_archive(
        scene: Scene, new: str) -> None:
    scene.postgres.sql(f"CREATE DATABASE {new}_b")
    scene.postgres.sql("CREATE TABLE only_there (i int)", f"{new}_b")
    there = Scene(scene.postgres, scene.s3, scene.folder, f"{new}_b", scene.prefix)
    scene.put("backup_1700000000.bak", archive(scene))
    scene.put("backup_1700000001.bak", archive(there))
    neither = {"DB_DATABASE": "neither"}
    assert "several" in refused(scene, "latest", "--database", new, **neither)
    verified = json.loads(scene.run("verify").stdout)["object"]
    assert verified == f"{scene.prefix}/backup_1700000000.bak"
    stored(there, archive(there), 1700000002)  # the only one of which it is known whose it is
    assert "several" in refused(scene, "latest", "--database", new, **neither)
    said = restored(scene, "latest", "--database", new).stdout
    assert "backup_1700000000.bak" in said
    scene.postgres.sql(f"DROP DATABASE {new}_b")


def test_latest_passes_over_a_doubtful_backup_that_list_shows(scene: Scene, new: str) -> None:
    name, small = stored(scene, archive(scene)), "backup_1700000001.bak"
    assert stored(scene, b"of an emptied database", 1700000001) == small
    known = [(row["name"], row["doubtful"], row["verified"])
             for row in json.loads(scene.run("list", "--json").stdout)]
    assert known == [(small, True, None), (name, False, None)]
    head, *rows = (line.split() for line in scene.run("list").stdout.splitlines())
    assert [(row[0], row[head.index("KIND")], row[head.index("VERIFIED")]) for row in rows] == [
        (small, "doubtful", "-"), (name, "proven", "-")]
    said = restored(scene, "latest", "--database", new).stderr
    assert re.search(f"level=warning .*doubtful.*{small}", said)
    same_databases(scene, new)


def test_a_backup_without_metadata_restores_and_says_what_was_not_checked(
        scene: Scene, new: str) -> None:
    scene.put("backup_5.bak", archive(scene))
    for which in ("backup_5.bak", "latest"):
        said = restored(scene, which, "--database", f"{new}_{which}")
        assert re.search("level=warning .*checksum.*not checked", said.stderr)
        assert "checksum: absent" in said.stdout
        same_databases(scene, f"{new}_{which}")


def test_latest_prefers_a_backup_that_can_be_checked(scene: Scene, new: str) -> None:
    name = stored(scene, archive(scene))
    scene.put("backup_1800000000.bak")
    assert name in restored(scene, "latest", "--database", new).stdout


def test_roles_that_the_server_lacks_are_named(scene: Scene, new: str) -> None:
    parts = ("owner", "grantee", "column's", "policy's", "default", "grantor", "set", "mapped")
    roles = {part: f'{scene.database} "{part}' for part in parts}
    o, g, c, p, d, f, s, m = map(identifier, roles.values())
    scene.sql("".join(f"CREATE ROLE {role};" for role in (o, g, c, p, d, f, s, m)) + f"""
        ALTER TABLE t OWNER TO {o}; GRANT SELECT ON t TO {g}; GRANT INSERT (id) ON t TO {c};
        CREATE POLICY p ON t TO postgres, {p} USING (true); ALTER DEFAULT PRIVILEGES GRANT SELECT ON
        TABLES TO {d}; ALTER DEFAULT PRIVILEGES FOR ROLE {f} GRANT SELECT ON TABLES TO PUBLIC;
        ALTER ROLE {s} IN DATABASE {scene.database} SET work_mem = '1MB'; CREATE FOREIGN DATA
        WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE USER MAPPING FOR {m} SERVER s""")
    name = stored(scene, archive(scene))
    for role in roles.values():
        scene.sql(f"ALTER ROLE {identifier(role)} RENAME TO {identifier(f'{role}, once')}")
    error = json.loads(re.findall('msg=(".*?[^\\\\]")', refused(scene, name, "--database", new))[0])
    assert [part for part, role in roles.items() if role not in error] == []


def test_without_owners_a_restore_needs_no_owner_and_no_grantee(scene: Scene, new: str) -> None:
    _, guest = roles = governed(scene)
    scene.sql(f"ALTER ROLE {identifier(guest)} IN DATABASE {scene.database} RESET ALL;"
              " ALTER POLICY watched ON t TO PUBLIC; ALTER POLICY added ON t TO PUBLIC")
    name = stored(scene, archive(scene))
    for role in roles:
        scene.sql(f"ALTER ROLE {identifier(role)} RENAME TO {identifier(role[::-1])}")
    assert guest in json.loads(
        re.findall('msg=(".*?[^\\\\]")', refused(scene, name, "--database", new))[0])
    restored(scene, name, "--database", new, "--no-owner")
    assert scene.postgres.fingerprint(new) == scene.postgres.fingerprint(scene.database)
    assert scene.postgres.sql("""SELECT tableowner, relacl, current_setting('work_mem') FROM
        pg_tables, pg_class WHERE tablename = 't' AND relname = 't'""", new) == "postgres||7MB"


@pytest.mark.parametrize("damage", [
    lambda body, other: body[:-99] + bytes([body[-99] ^ 1]) + body[-98:],
    lambda body, other: body[:len(body) // 2], lambda body, other: other, lambda body, other: b""],
    ids=["one bit", "truncated", "swapped", "emptied"])
def test_a_damaged_backup_is_refused(
        scene: Scene, new: str, damage: Callable[[bytes, bytes], bytes]) -> None:
    body = archive(scene)
    scene.sql("UPDATE t SET text = md5(text)")
    stored(scene, damage(body, archive(scene)), sha256=sha256_of(body))
    assert "damaged" in refused(scene, "latest", "--database", new)


@pytest.mark.parametrize("command", ["restore", "verify"])
def test_a_backup_for_which_there_is_no_room_is_refused(big: Scene, command: str) -> None:
    name, before = stored(big, os.urandom(16 << 20)), databases(big.postgres)
    more = ["--database", "never"] if command == "restore" else []
    with with_little_room(big, 16, command, name, *more) as executor:
        assert executor.wait() == 1
    [error] = error_lines(executor.log)
    assert "bytes are free" in error and executor.out == ["LEFT:"]
    assert databases(big.postgres) == before and list(big.objects()) == [name]


@pytest.mark.parametrize("clients", [15, 17])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "with a fault"])
def test_postgresql_15_is_restored_and_verified_by_its_own_programs_and_by_newer_ones(
        scene: Scene, generations: Generations, clients: int, whole: bool) -> None:
    old, source = generations[15], f"source_{secrets.token_hex(4)}"
    with old.dropping():
        old.make(source, FILLED)
        before, there = Scene(old, scene.s3, scene.folder, source, source), set(databases(old))
        governed(before)
        if not whole:  # pg_restore 17 can't stop at the first error there
            before.sql(f"CREATE TABLE picky (i int CHECK (current_database() = '{source}'));"
                       " INSERT INTO picky VALUES (1)")
        before.run("backup", clients=clients)
        [body] = before.objects().values()
        assert backup_executor.archive_origin(body[:200]) == (source, "15.19")
        proof = {"VERIFY_DB_HOST": "127.0.0.1", "VERIFY_DB_PORT": str(old.port),
                 "VERIFY_DB_PASSWORD": old.password, "status": 0 if whole else 1}
        report = json.loads(before.run("verify", clients=clients, **proof).stdout)
        for jobs in ("1", "3"):
            ran = before.run("restore", "latest", "--database", f"{source}_{jobs}", "--jobs", jobs,
                             clients=clients, status=0 if whole else 1)
            assert "transaction_timeout" not in ran.stderr
            if not whole:
                refusal, rows = error_lines(ran.stderr)
                assert "picky" in refusal and "public.picky: 1 row in the archive, 0" in rows
        if whole:
            assert (report["verdict"], report["rows"]["public.t"]) == (RESTORED, 500)
            properties = PROPERTIES.replace("datlocale, daticurules", "daticulocale")
            for name in (f"{source}_1", f"{source}_3"):
                assert old.fingerprint(name) == old.fingerprint(source)
                assert old.sql(properties, name) == before.sql(properties)
        else:
            assert "picky" in report["verdict"]
            made = set(databases(old)) - there
            assert len(made) == 2 and all(name.startswith("restore_") for name in made)
            assert all(old.sql("SELECT count(*) FROM t", name) == "500" for name in made)


def test_a_tar_archive_that_only_one_job_can_read_is_restored(
        scene: Scene, new: str, tmp_path: Path) -> None:
    scene.sql("SELECT lo_from_bytea(0, 'large'); CREATE TABLE \"o\n/d\" AS SELECT 1 AS one")
    (tmp_path / "a").write_bytes(archive(scene, "-Ft"))
    ran = restored(scene, "--file", str(tmp_path / "a"), "--database", new, "--jobs", "3")
    assert "row for row in number." in ran.stdout
    same_databases(scene, new)


@pytest.mark.parametrize("how", ["metadata", "none", "--file"])
def test_a_pg_restore_older_than_the_dump_is_refused(
        scene: Scene, new: str, tmp_path: Path, how: str) -> None:
    body = archive(scene)
    (tmp_path / "a").write_bytes(body)
    what = ["--file", str(tmp_path / "a")] if how == "--file" else ["backup_5.bak"]
    metadata = scene.head(scene.backup()["filename"])["Metadata"] if how == "metadata" else {}
    scene.put("backup_5.bak", body, **{**metadata, "sha256": sha256_of(body)})
    error = refused(scene, *what, "--database", new, clients=15)
    said = "older than" if how == "metadata" else "older than|unsupported version"
    assert re.search(f"pg_restore.*({said})", error)
    restored(scene, *what, "--database", new)


@pytest.mark.parametrize("content, error", [(None, "No such file"), (b"SELECT 1", "archive")])
def test_a_file_that_is_no_archive_is_refused(
        scene: Scene, new: str, tmp_path: Path, content: bytes | None, error: str) -> None:
    if content:
        (tmp_path / "a").write_bytes(content)
    assert error in refused(scene, "--file", str(tmp_path / "a"), "--database", new)


def test_a_file_is_restored_without_s3_and_without_colonies(
        scene: Scene, new: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(archive(scene))
    ran = run({name: text for name, text in scene.settings.items() if name.startswith("DB_")},
              "restore", "--file", str(tmp_path / "a"), "--database", new)
    assert ran.returncode == 0 and "Traceback" not in ran.stderr, ran.stderr
    same_databases(scene, new)
