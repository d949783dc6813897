"""Tests of restore --table: some tables' rows, and the schema whole."""
from __future__ import annotations

import os
import re
import subprocess

import pytest

import backup_executor
from restores import archive, refused, restored, stored
from surroundings import Generations, Scene
from timescale import Sensors

SHOP = """CREATE TABLE customers (id int PRIMARY KEY, "Name" text);
INSERT INTO customers SELECT i, 'n' || i FROM generate_series(1, 50) i;
CREATE TABLE orders (id int, customer int REFERENCES customers, region int,
    PRIMARY KEY (id, region)) PARTITION BY RANGE (id);
CREATE TABLE orders_old PARTITION OF orders FOR VALUES FROM (0) TO (100);
CREATE TABLE orders_new PARTITION OF orders FOR VALUES FROM (100) TO (999)
    PARTITION BY LIST (region);
CREATE TABLE orders_north PARTITION OF orders_new FOR VALUES IN (1);
CREATE TABLE orders_south PARTITION OF orders_new FOR VALUES IN (2);
INSERT INTO orders SELECT i, i % 50 + 1, i % 2 + 1 FROM generate_series(1, 300) i;
COMMENT ON CONSTRAINT orders_customer_fkey ON orders IS 'whose';
CREATE TABLE items (n serial, "order" int, region int, FOREIGN KEY ("order", region)
    REFERENCES orders);
INSERT INTO items ("order", region) SELECT id, region FROM orders;
COMMENT ON CONSTRAINT items_order_region_fkey ON items IS 'of which';
CREATE TABLE tree (id int PRIMARY KEY, up int REFERENCES tree);
INSERT INTO tree SELECT i, nullif(i - 1, 0) FROM generate_series(1, 7) i;
CREATE TABLE base (i int); CREATE TABLE derived () INHERITS (base);
INSERT INTO base VALUES (1); INSERT INTO derived VALUES (2), (3);
CREATE SCHEMA "odd Schema"; CREATE TABLE "odd Schema"."Odd ""Table" (i int REFERENCES customers);
INSERT INTO "odd Schema"."Odd ""Table" VALUES (1), (NULL);
CREATE SCHEMA other; CREATE TABLE other.customers AS SELECT FROM generate_series(1, 3);
CREATE MATERIALIZED VIEW many AS SELECT count(*) FROM customers;
CREATE VIEW spent AS SELECT id, count(n) FROM orders JOIN items ON id = "order" GROUP BY id;
SELECT lo_from_bytea(4711, 'large')"""
ROWS = {"customers": 50, "orders": 300, "orders_old": 99, "orders_north": 101, "orders_south": 100,
        "items": 300, "tree": 7, "base": 3, "derived": 2, '"odd Schema"."Odd ""Table"': 2,
        "other.customers": 3}


def rows(scene: Scene, database: str) -> dict[str, int]:
    """The rows of each table that has some."""
    counts = "; ".join(f"SELECT count(*) FROM {table}" for table in ROWS)
    found = map(int, scene.postgres.sql(counts, database).split())
    return {table: count for table, count in zip(ROWS, found) if count}


def schema(scene: Scene, database: str) -> list[str]:
    text = scene.postgres.run("pg_dump", "--schema-only", database=database)
    return re.findall(r"(?m)^(?!\\|--)\S.*(?:\n +.*)*", text)


def some_tables(scene: Scene, new: str, *tables: str) -> str:
    """What a restore of these tables alone prints."""
    chosen = [f"--table={table}" for table in tables]
    ran: subprocess.CompletedProcess[str] = restored(
        scene, "latest", "--database", new, *chosen)
    assert "level=error" not in ran.stderr
    return ran.stdout


def test_the_rows_of_a_table_and_its_partitions_are_restored_and_the_schema_is_whole(
        scene: Scene, new: str) -> None:
    scene.sql(SHOP)
    assert rows(scene, scene.database) == ROWS
    stored(scene, archive(scene))
    said = some_tables(scene, new, "orders", '"odd Schema"."Odd ""Table"', "tree")
    assert rows(scene, new) == {
        table: count for table, count in ROWS.items() if re.search("order|Odd|tree", table)}
    missing = set(schema(scene, scene.database)) - set(schema(scene, new))
    assert {re.findall("orders_customer_fkey|Odd \"\"Table_i_fkey", text)[0] for text in missing
            } == {"orders_customer_fkey", 'Odd ""Table_i_fkey'} and len(missing) == 3
    empty, out = re.findall(r"(?m)^(?:Empty|Left out).*", said)
    assert empty.endswith(": 6 tables: other.customers, public.base, public.customers, "
                          "public.derived, public.items, public.t"), empty
    for name in ("orders_customer_fkey", 'Odd "Table_i_fkey', "DATA public many", "BLOBS"):
        assert name in out
    assert "items_order" not in out and "tree_up" not in out
    assert scene.postgres.sql("SELECT nextval('items_n_seq')", new) == "301"
    assert "RENAME" not in said and "Restored" in said
    with pytest.raises(RuntimeError, match="not been populated"):
        scene.postgres.sql("TABLE many", new)


@pytest.mark.parametrize(("table", "filled", "out"), [
    ("orders_new", ["orders_north", "orders_south"], "orders_customer_fkey"),
    ("public.orders_old", ["orders_old"], "orders_customer_fkey"),
    ("customers", ["customers"], ""), ("base", ["base"], ""), ("derived", ["derived"], ""),
    ("items", ["items"], "items_order_region_fkey")])
def test_a_key_is_left_out_where_it_would_point_from_rows_to_none(
        scene: Scene, new: str, table: str, filled: list[str], out: str) -> None:
    scene.sql(SHOP)
    stored(scene, archive(scene))
    said = some_tables(scene, new, table)
    [empty] = re.findall("(?m)^Empty.*", said)
    assert ("public.orders_old" in empty) == (table == "orders_new")  # else with its parent
    found = rows(scene, new)
    assert set(found) - {"orders", "base"} == set(filled) - {"base"}
    assert set(re.findall(r"FK CONSTRAINT public \w+ (\w+)", said)) == {*filter(None, [out])}
    keys = set(scene.postgres.sql(
        "SELECT conname FROM pg_constraint WHERE contype = 'f' AND conparentid = 0", new).split())
    assert {"orders_customer_fkey", "items_order_region_fkey", "tree_up_fkey"} - keys == {
        *filter(None, [out])}


def test_a_table_is_named_as_people_do(scene: Scene, new: str) -> None:
    scene.sql(SHOP)
    stored(scene, archive(scene))
    for number, typed in enumerate((
            "Public.CUSTOMERS", '"public"."customers"', 'public."customers"', "customers")):
        some_tables(scene, f"{new}_{number}", typed)
        assert rows(scene, f"{new}_{number}") == {"customers": 50}, typed


def test_a_table_that_is_not_there_is_an_error_that_names_those_that_sound_like_it(
        scene: Scene, new: str) -> None:
    scene.sql(SHOP)
    stored(scene, archive(scene))
    for typed, near in (
            ("costumers", "public.customers"), ("odd Schema.Odd Table", 'odd Schema.Odd "Table'),
            ('"Customers"', "public.customers"), ("public.spent", "public.t"), ("a.b.c", ""),
            ("", ""), ("xyzzy", "none"), ('other."customers', "other.customers")):
        error = refused(
            scene, "latest", "--database", new, "--table", "orders", "--table", typed).replace(
                "\\", "")
        assert f"no table {typed};" in error and near in error, error


def test_what_is_empty_is_named_in_short(scene: Scene, new: str) -> None:
    scene.sql("".join(f"CREATE TABLE many_{i:02} (i int);" for i in range(30)))
    stored(scene, archive(scene))
    [line] = re.findall("(?m)^Empty.*", some_tables(scene, new, "t"))
    assert line.endswith("public.many_19 and 10 more") and " 30 tables: public.many_00, " in line


@pytest.mark.parametrize("version", [14, 18])
def test_tables_of_other_generations_can_be_chosen(
        scene: Scene, new: str, generations: Generations, version: int) -> None:
    server = generations[version]
    there = Scene(server, scene.s3, scene.folder, scene.database, scene.prefix)
    with server.dropping():
        server.sql(f"CREATE DATABASE {there.database}")
        there.sql(SHOP)
        there.backup()
        assert "orders_customer_fkey" in some_tables(there, new, "orders")
        assert rows(there, new) == {
            table: count for table, count in ROWS.items() if table.startswith("orders")}


@pytest.mark.parametrize("more", ["", "; CREATE EXTENSION timescaledb"])
def test_keys_are_made_when_all_indexes_are_attached(
        sensors: Sensors, target: str, tmp_path: os.PathLike[str], more: str) -> None:
    """pg_restore's workers had deadlocks, in 2 to 8 of 100 restores of tables without rows."""
    server, path = sensors.server, f"{tmp_path}/archive"
    server.sql(f"CREATE DATABASE {target}_old")
    server.sql(SHOP + more, f"{target}_old")
    server.run("pg_dump", "-Fc", "-f", path, database=f"{target}_old")
    since = len(server.logged())
    sensors.run("restore", "--file", path, "--database", target, "--table", "base")
    steps = re.findall("ATTACH PARTITION|FOREIGN KEY", "\n".join(server.logged(since)))
    assert steps == sorted(steps) and {*steps} == {"ATTACH PARTITION", "FOREIGN KEY"}


# ---- TimescaleDB -------------------------------------------------------------------------------

# readings' compressed chunk is one of a hypertable of its own, or, where it was compressed by a
# newer version, in settings. Those of a hypertable as a whole name no table (2.29.2).
OLDER = """INSERT INTO _timescaledb_catalog.hypertable VALUES
    (2, '_timescaledb_internal', '_compressed_hypertable_2');
UPDATE _timescaledb_catalog.hypertable SET compressed_hypertable_id = 2 WHERE id = 1;
INSERT INTO _timescaledb_catalog.chunk VALUES (100, 2, 'compress_hyper_2_3_chunk', '')"""
NEWER = f"""{OLDER}; SELECT compress_chunk('_timescaledb_internal._hyper_1_2_chunk');
INSERT INTO _timescaledb_catalog.compression_settings VALUES ('readings', NULL), ('notes', NULL)"""


@pytest.mark.parametrize("change", [OLDER, NEWER], ids=["older", "newer"])
def test_a_hypertables_chunks_are_restored_with_it(
        sensors: Sensors, target: str, tmp_path: os.PathLike[str], change: str) -> None:
    server, source, path = sensors.server, f"{target}_old", f"{tmp_path}/archive"
    server.sql(f"CREATE DATABASE {source} TEMPLATE sensors")
    before = server.sql("SELECT count(*) FROM readings", source)
    server.sql(change, source)
    server.run("pg_dump", "-Fc", "-f", path, database=source)
    said = sensors.run("restore", "--file", path, "--database", target, "--pause-jobs",
                       "--table", "readings").stdout
    assert int(before) > 700
    assert server.sql("SELECT count(*) FROM readings", target) == before
    for table in ("notes", "places", "alarms"):
        assert server.sql(f"SELECT count(*) FROM public.{table}", target) == "0"
    assert set(re.findall(r"FK CONSTRAINT \w+ \S+ (\w+)", said)) == {
        "readings_place_fkey", "1_1_readings_place_fkey", "2_2_readings_place_fkey"}
    assert server.sql("SELECT count(*) FROM pg_constraint WHERE conname = 'alarms_at'",
                      target) == "1"
    assert ": 3 tables: public.alarms, public.notes, public.places\n" in said
    assert server.sql("SELECT count(*) FROM _timescaledb_catalog.chunk", target) == server.sql(
        "SELECT count(*) FROM _timescaledb_catalog.chunk", source)


def test_a_catalog_of_timescaledb_2_30_names_chunks_by_regclasses() -> None:
    catalog = """
COPY _timescaledb_catalog.hypertable (id, schema_name, table_name, replication) FROM stdin;
1	public	odd "Table	\\N
3	public	other	\\N
\\.
COPY _timescaledb_catalog.chunk (id, relid, hypertable_id) FROM stdin;
7	_timescaledb_internal._hyper_1_7_chunk	1
8	_timescaledb_internal."Odd.""8"	3
9	-	3
\\.
COPY _timescaledb_catalog.compression_settings (relid, compress_relid, index) FROM stdin;
public."odd ""Table"	\\N	\\N
_timescaledb_internal._hyper_1_7_chunk	_timescaledb_internal.compress_9	\\N
\\.
"""
    inner = "_timescaledb_internal"
    assert {*backup_executor.hypertable_parts(catalog)} == {
        (("public", 'odd "Table'), (inner, "_hyper_1_7_chunk")),
        (("public", "other"), (inner, 'Odd."8')),
        ((inner, "_hyper_1_7_chunk"), (inner, "compress_9"))}
