"""Tests of restores that go on after what a server refuses, and of those that had better not."""
from __future__ import annotations

import json
import re
import secrets
import subprocess
from pathlib import Path

import pytest

import backup_executor
from restores import (
    RESTORED,
    archive,
    databases,
    refused,
    restored,
    same_databases,
    stored,
    verifying,
)
from servers import (
    Executor,
    Postgres,
    SeaweedFS,
    client_programs,
    error_lines,
    programs,
)
from surroundings import Generations, Scene
from test_restore_passes import FEED, UNFEED, extension_of, scene_at
from test_restore_stopped import GATE, shut
from timescale import Sensors, Timescale

# It takes a search_path, and pg_restore sets none.
EARLY = """CREATE FUNCTION there(int) RETURNS bool LANGUAGE plpgsql AS
    $$ BEGIN RETURN EXISTS (SELECT FROM t WHERE id = $1); END $$;
    CREATE TABLE a_first (a int CHECK (there(a))); INSERT INTO a_first SELECT 7 * i
    FROM generate_series(1, 10) i;
    CREATE TABLE child (i int REFERENCES t); INSERT INTO child VALUES (1)"""
LATE = "not restored: TABLE DATA public a_first: "


def left(ran: subprocess.CompletedProcess[str], server: Postgres, before: dict[str, int]) -> str:
    """The one database that a restore has left, under no final name; it says so."""
    [made] = set(databases(server)) - {*before}
    assert re.fullmatch(r"restore_\d+", made) and made in ran.stdout
    assert f'level=warning msg="What was restored is not whole: it is kept" Database={made}' in (
        ran.stderr)
    return made


def statements(said: str, first: str, last: str) -> str:
    """What a restore prints for psql, from the line behind FIRST on, up to LAST."""
    return said.partition(first)[2].partition("\n")[2].partition(last)[0] + last


@pytest.mark.parametrize(("version", "clients"), [(17, 17), (15, 15), (15, 18)])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_what_is_refused_is_named_and_all_else_is_there(
        generations: Generations, s3: SeaweedFS, version: int, clients: int, jobs: str) -> None:
    server = generations[version]
    with scene_at(server, s3) as scene:
        scene.sql(EARLY)
        backup, new = stored(scene, archive(scene)), f"{scene.database}_new"
        before = databases(server)
        ran = restored(scene, backup, "--database", new, "--jobs", jobs, status=1, clients=clients)
        made = left(ran, server, before)
        assert len(error_lines(ran.stderr)) == 2, ran.stderr
        assert LATE in ran.stderr and "public.a_first: 10 rows in the archive, 0 restored" in (
            ran.stderr)
        assert server.sql("SELECT count(*) FROM t", made) == "500"
        assert server.sql("SELECT reltuples FROM pg_class WHERE relname = 't'", made) == "500"
        assert server.sql("SELECT count(*) FROM pg_constraint WHERE contype = 'f'", made) == "1"
        assert "500  public.t\n" in ran.stdout and "0  public.a_first\n" in ran.stdout
        assert "not row for row; not whole." in ran.stdout
        server.sql(statements(ran.stdout, "To name it all the same", "COMMIT;"))
        swap = statements(ran.stdout, "To put it in the place of", "To drop it:")
        server.sql(swap.removesuffix("To drop it:"))
        assert scene.sql("SELECT count(*) FROM t, a_first") == "0"
        assert server.sql("SELECT count(*) FROM a_first", f"before_{made}") == "10"


AFTER = EARLY.replace("FROM t", "FROM public.t") + """;
    CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN INSERT INTO public.seen VALUES (NEW.a); RETURN NEW; END$$; CREATE TABLE seen (a int);
    CREATE FUNCTION whole() RETURNS bigint LANGUAGE sql
    BEGIN ATOMIC SELECT sum(length(text)) FROM (SELECT id, text FROM t GROUP BY id) AS x; END;
    CREATE TABLE with_default (i bigint DEFAULT whole()); INSERT INTO with_default VALUES (1);
    CREATE FUNCTION first(int) RETURNS bool LANGUAGE plpgsql AS
    $$ BEGIN RETURN EXISTS (SELECT FROM public.a_first WHERE a = $1); END $$;
    CREATE TABLE a_before (a int CHECK (first(a))); INSERT INTO a_before VALUES (7);
    CREATE FUNCTION priced(int) RETURNS numeric IMMUTABLE LANGUAGE sql
        AS $$ SELECT $1 * id FROM public.t WHERE id = 7 $$;
    CREATE TABLE a_price (a int CHECK (first(a)), p numeric GENERATED ALWAYS AS (priced(a)) STORED);
    INSERT INTO a_price VALUES (7); CREATE TRIGGER see BEFORE INSERT ON a_price FOR EACH ROW
        EXECUTE FUNCTION see();
    CREATE TRIGGER see BEFORE INSERT ON seen FOR EACH ROW EXECUTE FUNCTION see()"""


@pytest.mark.parametrize("how", [["--jobs", "1"], ["--jobs", "2"], ["--only-complete"]])
def test_what_takes_what_comes_after_it_is_tried_once_more(
        scene: Scene, new: str, how: list[str]) -> None:
    scene.sql(AFTER)
    ran = restored(scene, stored(scene, archive(scene)), "--database", new, *how)
    assert "row for row in number." in ran.stdout
    same_databases(scene, new)


def test_verify_proves_what_a_restore_makes_whole(scene: Scene) -> None:
    scene.sql(AFTER)
    scene.backup()
    report = json.loads(scene.run("verify", **verifying(scene.postgres)).stdout)
    assert report["verdict"] == RESTORED and report["rows"]["public.a_first"] == 10


def test_verify_names_all_that_a_restore_would_have_to_name(scene: Scene) -> None:
    scene.sql(AFTER + """; CREATE TABLE b (i int CHECK (current_database() !~ '^verify_'));
        INSERT INTO b VALUES (1); CREATE VIEW v AS SELECT i, 1 / i AS one FROM b;
        CREATE TABLE c (LIKE b INCLUDING ALL); INSERT INTO c VALUES (1)""")
    scene.backup()
    verdict = json.loads(scene.run("verify", **verifying(scene.postgres), status=1).stdout)[
        "verdict"]
    assert re.fullmatch("failed: not restored: TABLE DATA public b: .*; "
                        "not restored: TABLE DATA public c: [^;]*", verdict)


def test_what_a_server_lacks_is_no_verdict_beside_what_restores_when_tried_once_more(
        scene: Scene, tmp_path: Path) -> None:
    """Of the backup that was refused first, which then is whole."""
    scene.sql(AFTER + """; CREATE FUNCTION full_up() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
        IF current_database() ~ '^verify_' THEN RAISE disk_full; END IF; RETURN true; END $$;
        CREATE TABLE b (i int CHECK (public.full_up())); INSERT INTO b VALUES (1)""")
    scene.backup()
    before = scene.objects().keys()
    ran = scene.run("verify", **verifying(scene.postgres), status=1)
    [error] = error_lines(ran.stderr)
    assert "TABLE DATA public b: " in error and not ran.stdout
    assert scene.objects().keys() == before


@pytest.mark.parametrize("how", ["restore", "--only-complete", "verify"])
def test_what_a_function_says_is_no_error_of_pg_restores_own(
        scene: Scene, new: str, how: str) -> None:
    """Beside what restores when tried once more: else that alone would be no whole restore."""
    scene.sql(AFTER + r"""; CREATE FUNCTION picky(i int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
        $$ BEGIN IF current_database() ~ '^(verify|restore)_' THEN RAISE
            E'no transaction_timeout\nCommand was: SET transaction_timeout = 0;'; END IF;
        RETURN i; END $$; CREATE INDEX lost ON t (picky(id))""")
    scene.backup()
    if how == "verify":
        said = scene.run("verify", **verifying(scene.postgres), status=1).stdout
        assert json.loads(said)["verdict"].startswith("failed: not restored: INDEX public lost: ")
    else:
        more = [how] * (how != "restore")
        ran = restored(scene, "latest", "--database", new, *more, status=1)
        assert "not restored: INDEX public lost: " in ran.stderr


def test_a_chain_of_what_takes_what_comes_after_it_may_be_long() -> None:
    """With one more there each time, as of tables whose checks look into the next one."""
    entries = [f"{i}; 2606 {i} CHECK CONSTRAINT public t{i} c postgres" for i in range(1200)]
    amiss, done = dict.fromkeys(entries[:-1], "refused"), {entries[-1]}

    def restore_part(tried: list[str], amiss: dict[str, str]) -> None:
        amiss.update(dict.fromkeys(tried[:-1], "refused"))
        done.add(tried[-1])

    backup_executor.try_again(entries, amiss, restore_part)
    assert not amiss and done == {*entries}


@pytest.mark.parametrize("how", [
    "a trigger would see", "a trigger would see, though it says that there is no table",
    "a trigger of the whole would see", "may be there in part"])
def test_rows_are_not_tried_once_more_that(scene: Scene, new: str, how: str) -> None:
    options = ["--rows-per-insert=4"] if "part" in how else []
    early = EARLY.replace("FROM t", "FROM public.t")
    if "though" in how:
        early = early.replace("RETURN EXISTS (", "IF NOT EXISTS (").replace(
            "); END $$", r""") THEN RAISE E'no\nCommand was: COPY t'; END IF; RETURN true;
            END $$""")
    if "whole" in how:
        early = early.replace("a_first (a int CHECK (there(a)))", """the_whole (a int)
            PARTITION BY LIST (a); CREATE TABLE a_first PARTITION OF the_whole DEFAULT;
            ALTER TABLE a_first ADD CHECK (there(a))""")
    scene.sql(early + """;
        CREATE TABLE seen (a int); CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN INSERT INTO public.seen VALUES (NEW.a); RETURN NEW; END$$""")
    if "trigger" in how:
        scene.sql(f"""CREATE TRIGGER watch BEFORE INSERT ON
            {'the_whole' if 'whole' in how else 'a_first'} FOR EACH ROW EXECUTE FUNCTION see()""")
    backup, before = stored(scene, archive(scene, *options)), databases(scene.postgres)
    ran = restored(scene, backup, "--database", new, "--jobs", "1", status=1)
    made = left(ran, scene.postgres, before)
    assert LATE in ran.stderr
    assert scene.postgres.sql("SELECT count(*) FROM a_first, seen", made) == "0"


def test_what_is_not_whole_replaces_nothing_and_what_drops_it_is_printed(
        scene: Scene, new: str) -> None:
    scene.sql(EARLY)
    scene.postgres.sql(f"CREATE DATABASE {new}")
    scene.postgres.sql("CREATE TABLE old ()", new)
    backup, before = stored(scene, archive(scene)), databases(scene.postgres)
    ran = restored(scene, backup, "--database", new, "--replace", status=1)
    left(ran, scene.postgres, before)
    assert not scene.postgres.sql("SELECT * FROM old", new)
    scene.postgres.sql(ran.stdout.partition("To drop it:\n")[2])
    assert databases(scene.postgres) == before


def test_what_drops_it_is_not_refused_for_a_subscription(
        scene: Scene, new: str) -> None:
    scene.sql(f"{EARLY}; {FEED.format('feed', 'x')}")
    backup, before = stored(scene, archive(scene)), databases(scene.postgres)
    scene.sql(UNFEED.format("feed"))
    ran = restored(scene, backup, "--database", new, status=1)
    left(ran, scene.postgres, before)
    scene.postgres.sql(ran.stdout.partition("To drop it:\n")[2])
    assert databases(scene.postgres) == before


def test_what_workers_say_in_pieces_is_named_all_the_same(
        scene: Scene, new: str, tmp_path: Path) -> None:
    """As six of them wrote it when each failed; here each time, as one of seven hundred did."""
    scene.sql(f"""{EARLY}; CREATE FUNCTION picky(i int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$
        BEGIN IF current_database() ~ '^restore_' THEN RAISE 'not here'; END IF; RETURN i; END $$;
        CREATE INDEX one ON t (picky(id)); CREATE INDEX two ON t (picky(id + 1))""")
    path = programs(tmp_path / "odd", pg_restore=f"""#!/bin/sh
said=$(mktemp); {client_programs()[0]}/pg_restore "$@" 2> $said; status=$?
sed -e 's/^pg_restore: from TOC/ pg_restore: from TOC/' -e '/two/s/^ pg_re.*from TOC/from TOC/' \\
    -e 's/^pg_restore: error: COPY/error: pg_restore: COPY/' \\
    -e 's/^pg_restore: error: could/pg_restore: pg_restore:error:  could/' \\
    -e 's/^pg_restore: finished/pg_restore: error: finished/' $said >&2
rm $said; exit $status""")
    backup, before = stored(scene, archive(scene)), databases(scene.postgres)
    ran = restored(scene, backup, "--database", new, "--jobs", "2", PATH=path, status=1)
    left(ran, scene.postgres, before)
    assert LATE in ran.stderr and len(error_lines(ran.stderr)) == 4, ran.stderr
    for index in ("one", "two"):
        assert f"not restored: INDEX public {index}: ERROR:  not here" in ran.stderr


def test_only_what_is_complete_is_kept_where_that_is_asked_for(scene: Scene, new: str) -> None:
    scene.sql(EARLY)
    assert "a_first" in refused(
        scene, stored(scene, archive(scene)), "--database", new, "--only-complete")


FULL = """CREATE FUNCTION full_up() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
    IF current_database() ~ '^restore_' THEN RAISE disk_full USING MESSAGE =
    'could not extend file "base/1": No space left on device'; END IF; RETURN true; END $$;
    CREATE TABLE a_first (a int CHECK (public.full_up())); INSERT INTO a_first VALUES (1)"""


@pytest.mark.parametrize("keep", [False, True], ids=["dropped", "kept"])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_where_the_server_has_no_room_nothing_else_is_tried(
        scene: Scene, new: str, keep: bool, jobs: str) -> None:
    """pg_restore would go on: what it is at by then waits for a lock, till it is stopped."""
    scene.sql(f"{FULL}; {GATE.format('COPY')}")
    name, before = stored(scene, archive(scene)), databases(scene.postgres)
    with shut(scene), Executor(scene.settings, "restore", name, "--database", new, "--jobs", jobs,
                               *["--keep"] * keep) as executor:
        assert executor.wait() == 1, executor.log
    [error] = error_lines(executor.log)
    assert "a_first" in error and "No space left" in error and not executor.out
    made = set(databases(scene.postgres)) - {*before}
    assert len(made) == keep
    assert all(scene.postgres.sql("SELECT count(*) FROM t", each) == "0" for each in made)


def test_where_shared_memory_was_too_small_for_a_plan_all_else_is_restored(
        scene: Scene, new: str) -> None:
    scene.sql(FULL.replace('extend file "base/1":', 'resize segment "/x" to 8 bytes:'))
    backup, before = stored(scene, archive(scene)), databases(scene.postgres)
    ran = restored(scene, backup, "--database", new, status=1)
    made = left(ran, scene.postgres, before)
    assert "TABLE DATA public a_first: " in ran.stderr and "No space left" in ran.stderr
    assert scene.postgres.sql("SELECT count(*) FROM t", made) == "500"


def test_a_server_that_recovers_from_what_ended_a_restore_is_waited_for_to_drop_it(
        scene: Scene, new: str, tmp_path: Path) -> None:
    down, real = f"{tmp_path}/down", client_programs()[0]
    path = programs(tmp_path / "bin", pg_restore=f"""#!/bin/sh
case "$*" in *--dbname*) touch '{down}'
    echo 'pg_restore: error: could not execute query: server closed the connection' >&2; exit 1
esac; exec '{real}/pg_restore' "$@\"""", psql=f"""#!/bin/sh
rm '{down}' 2> /dev/null || exec '{real}/psql' "$@"
echo 'psql: error: connection to server at "127.0.0.1", port 5432 failed: FATAL:  das'\
     'Datenbanksystem ist im Wiederherstellungsmodus' >&2; exit 2""")
    error = refused(scene, stored(scene, archive(scene)), "--database", new, PATH=path,
                    BACKUP_TIME_SCALE="0.01")
    assert "server closed the connection" in error


def test_views_are_not_filled_one_by_one_where_there_is_no_room(scene: Scene, new: str) -> None:
    scene.sql("""CREATE FUNCTION full_up(i int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN
        IF current_database() ~ '^restore_' THEN RAISE disk_full USING MESSAGE =
        'No space left on device'; END IF; RETURN i; END $$;
        CREATE MATERIALIZED VIEW a AS SELECT public.full_up(1);
        CREATE MATERIALIZED VIEW b AS SELECT 1; CREATE PUBLICATION p FOR TABLE t""")
    ran = restored(scene, stored(scene, archive(scene)), "--database", new, status=1)
    [full, *others] = error_lines(ran.stderr)
    assert "MATERIALIZED VIEW DATA public a: " in full and "No space left" in full
    assert len(others) == 3 and all("not tried, as the server has no room" in x for x in others)
    assert scene.postgres.sql("SELECT count(*) FROM t", new) == "500"


def test_many_refusals_are_named_up_to_a_number_and_the_others_counted(
        scene: Scene, new: str) -> None:
    scene.sql("""CREATE FUNCTION picky(i int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
        IF current_database() ~ '^restore_' THEN RAISE 'not here'; END IF; RETURN i; END $$;
        CREATE TABLE one AS SELECT 1 AS i; DO $$ BEGIN FOR i IN 1 .. 1003 LOOP
        EXECUTE format('CREATE INDEX "many %s" ON one (picky(i))', i); END LOOP; END $$""")
    ran = restored(scene, stored(scene, archive(scene)), "--database", new, "--jobs", "1", status=1)
    errors = error_lines(ran.stderr)
    assert len(errors) == 1001 and "not restored: 3 more" in errors[-1]
    assert sum("not restored: INDEX public many " in line for line in errors) == 1000
    assert "500  public.t\n" in ran.stdout


def test_neither_rows_nor_what_a_terminal_obeys_nor_statements_are_in_what_is_told(
        scene: Scene, new: str) -> None:
    row, body = (f"hush{secrets.token_hex(8)}" for _ in range(2))
    scene.sql(f"""CREATE TABLE typed (word text, CHECK (current_database() !~ '^restore_'
        OR word::int > 0)); INSERT INTO typed VALUES ('{row}');
        CREATE TABLE odd (word text, CHECK (current_database() !~ '^restore_'));
        INSERT INTO odd VALUES ('{row}');
        CREATE TABLE "o\x1b[31m\nd" (word text CHECK (current_database() !~ '^restore_'));
        INSERT INTO "o\x1b[31m\nd" VALUES ('{row}');
        CREATE FUNCTION picky(i int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
        IF current_database() ~ '^restore_' THEN RAISE E'no\n%pg_restore: error: {body}', i;
        END IF; RETURN i; END $$; CREATE INDEX picked ON t (picky(id));
        CREATE TABLE wordy AS SELECT '{row}' AS word;
        CREATE STATISTICS of_wordy ON (word::int), (word || 1) FROM wordy""")
    backup = stored(scene, archive(scene))
    ran = restored(scene, backup, "--database", new, status=1)
    strict = restored(scene, backup, "--database", f"{new}_2", "--only-complete", status=1)
    assert "odd_check" in strict.stderr
    said = ran.stdout + ran.stderr + strict.stderr
    assert row not in said and body not in said and "\x1b" not in said
    assert 'invalid input syntax for type integer: \\"…\\"' in said
    assert 'violates check constraint \\"odd_check\\"' in said
    assert "not restored: INDEX public picked: ERROR:  no" in said
    assert re.search(r"wordy: not analyzed: invalid input syntax .*: ..….. \(22P02\)", said)
    assert len(error_lines(ran.stderr)) == 4 + 3 + 1  # rows are counted, too


def test_a_long_row_that_a_check_tells_of_is_looked_through_once(scene: Scene, new: str) -> None:
    scene.sql("""CREATE FUNCTION never(w text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
        IF current_database() ~ '^restore_' THEN RAISE 'never %', w; END IF; RETURN true; END $$;
        CREATE TABLE wide (word text CHECK (public.never(word)));
        INSERT INTO wide VALUES (repeat('é', 1000000))""")
    ran = restored(scene, stored(scene, archive(scene)), "--database", new, status=1)
    assert re.search("not restored: TABLE DATA public wide: .*ERROR:  never é+\"", ran.stderr)


def test_what_pg_restore_sets_at_an_older_server_is_no_refusal_in_any_language(
        generations: Generations, s3: SeaweedFS, tmp_path: Path) -> None:
    real = client_programs()[0]
    path = programs(tmp_path / "bin", pg_restore=f"""#!/bin/bash
exec 3>&1
'{real}/pg_restore' "$@" 2>&1 >&3 | sed -u 's/unrecognized .* "\\(.*_timeout\\)"/{{}} »\\1«/' >&2
exit ${{PIPESTATUS[0]}}""".replace("{}", "unbekannter Konfigurationsparameter"))
    with scene_at(generations[15], s3) as scene:
        scene.sql(EARLY)
        ran = restored(scene, stored(scene, archive(scene)), "--database", f"{scene.database}_new",
                       "--jobs", "2", status=1, PATH=path)
        assert len(error_lines(ran.stderr)) == 2 and LATE in ran.stderr, ran.stderr


@pytest.mark.parametrize("said", [
    "invalid input syntax for type integer: \"{}\nmore", "ungültige Eingabe für int: »{}«",
    "syntaxe en entrée invalide pour int : « {} »", "\"{}\" is out of range for type real",
    "value \"{}\" is out of range for type integer", "Wert »{}« ist zu groß für Typ integer",
    "valore \"{}\" fuori dall''intervallo", "значение \"{}\" вне диапазона"])
def test_a_row_is_not_told_that_goes_on_in_the_next_line_or_by_a_server_of_another_language(
        scene: Scene, new: str, said: str) -> None:
    row = f"hush{secrets.token_hex(8)}"
    scene.sql(f"""CREATE FUNCTION never(w text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
        IF current_database() ~ '^restore_' THEN RAISE '%', replace(E'{said}', '{{}}', w); END IF;
        RETURN true; END $$; CREATE TABLE typed (word text CHECK (public.never(word)));
        INSERT INTO typed VALUES ('{row}')""")
    ran = restored(scene, stored(scene, archive(scene)), "--database", new, status=1)
    assert row not in ran.stdout + ran.stderr
    assert re.search("not restored: TABLE DATA public typed: .*ERROR:  .*…", ran.stderr)
    assert ("is out of range" in said) == ("is out of range" in ran.stderr)


def test_what_the_last_address_of_a_host_says_is_told_when_the_first_one_is_not_there(
        scene: Scene, new: str, tmp_path: Path) -> None:
    scene.backup()
    path = programs(tmp_path / "bin", pg_restore=f"""#!/bin/sh
case "$*" in *--verbose*) export PGHOST="127.0.0.2,$PGHOST" PGUSER=nobody;; esac
exec '{client_programs()[0]}/pg_restore' "$@"
""")
    error = refused(scene, "latest", "--database", new, PATH=path)
    assert "Connection refused" in error and 'failed for user \\"nobody\\"' in error


def test_an_extension_that_the_server_lacks_is_said_at_once_and_can_be_done_without(
        timescale: Timescale, s3: SeaweedFS) -> None:
    with scene_at(timescale, s3) as scene:
        new = f"{scene.database}_new"
        with extension_of(timescale, "rare", "CREATE TABLE public.kept (i int);"):
            scene.sql("CREATE EXTENSION rare; CREATE VIEW seen AS SELECT * FROM kept")
            scene.backup()
        before = databases(timescale)
        error = refused(scene, "latest", "--database", new)
        assert 'extension \\"rare\\" is not available' in error and "--keep goes on" in error
        ran = restored(scene, "latest", "--database", new, "--keep", status=1)
        made = left(ran, timescale, before)
        assert "not restored: VIEW public seen: it depends on an extension" in ran.stderr
        assert timescale.sql("SELECT count(*) FROM t", made) == "500"


def test_what_is_not_whole_of_timescaledb_shows_all_rows_and_runs_no_job(
        sensors: Sensors, target: str) -> None:
    source, server = f"{target}_source", sensors.server
    server.sql(f"CREATE DATABASE {source} TEMPLATE sensors")
    scene = Scene(server, sensors.s3, sensors.folder, source, target)
    scene.sql("""CREATE FUNCTION picky(i int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
        IF current_database() ~ '^restore_' THEN RAISE 'not here'; END IF; RETURN i; END $$;
        CREATE INDEX picked ON notes (picky(id)); UPDATE _timescaledb_config.bgw_job
        SET statement = 'DELETE FROM public.readings WHERE at < 200' WHERE id = 1000""")
    rows = scene.sql("SELECT count(*) FROM readings")
    scene.backup()
    before = databases(server)
    ran = scene.run("restore", "latest", "--database", target, status=1)
    made = left(ran, server, before)
    [error] = error_lines(ran.stderr)
    assert "not restored: INDEX public picked: " in error
    assert server.sql("SELECT count(*) FROM readings", made) == rows
    since = len(server.logged())
    server.sql(statements(ran.stdout, "To name it all the same", "start_background_workers();"))
    assert not server.idle(since)
    assert server.sql("SELECT count(*) FROM readings", target) == rows
    switch = statements(ran.stdout, "To switch its jobs on", "AS id;")
    server.sql(switch, target)
    assert server.sql("SELECT count(*) FROM _timescaledb_config.bgw_job WHERE scheduled AND"
                      " id >= 1000", target) == "2"


def test_what_takes_what_comes_after_it_is_tried_once_more_beside_timescaledb(
        sensors: Sensors, target: str) -> None:
    source, server = f"{target}_source", sensors.server
    server.sql(f"CREATE DATABASE {source} TEMPLATE sensors")
    scene = Scene(server, sensors.s3, sensors.folder, source, target)
    scene.sql("CREATE TABLE t AS SELECT 7 AS id")
    scene.sql("""CREATE FUNCTION there(int) RETURNS bool LANGUAGE plpgsql AS
        $$ BEGIN RETURN EXISTS (SELECT FROM public.t WHERE id = $1); END $$;
        CREATE TABLE a_first (a int CHECK (there(a))); INSERT INTO a_first VALUES (7)""")
    scene.backup()
    report = json.loads(scene.run("verify", **verifying(server)).stdout)
    assert report["rows"]["public.a_first"] == 1 and report["verdict"] == RESTORED
    ran = scene.run("restore", "latest", "--database", target)
    assert "row for row in number." in ran.stdout


# ---- Locales -----------------------------------------------------------------------------------

def test_a_locale_of_a_kind_that_the_server_does_not_know_is_said_before_the_download(
        scene: Scene, generations: Generations, s3: SeaweedFS, new: str) -> None:
    older = generations[16]
    scene.postgres.sql(f"""CREATE DATABASE {new} TEMPLATE template0 LOCALE_PROVIDER builtin
        BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'""")
    source = Scene(scene.postgres, scene.s3, scene.folder, new, scene.prefix)
    source.sql("CREATE TABLE t AS SELECT 1 AS one")
    source.backup()
    with scene_at(older, s3) as there:
        there.settings |= {"AWS_S3_PREFIX": scene.prefix, "DB_DATABASE": new}
        ran = there.run("restore", "latest", "--database", f"{new}_2", status=1, clients=17)
        [error] = error_lines(ran.stderr)
        assert "builtin" in error and "--locale takes another: C.UTF-8 with UTF8" in error
        assert "Download" not in ran.stderr
        for locale in ("C.UTF-8", "C"):
            name = f"{new}_{len(locale)}"
            there.run("restore", "latest", "--database", name, "--locale", locale, clients=17)
            assert older.sql("SELECT datcollate, one FROM pg_database, t"
                             " WHERE datname = current_database()", name) == f"{locale}|1"
