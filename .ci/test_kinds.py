"""One object of each kind that pg_dump knows, and what becomes of it by each way to restore.

The kinds are those of PostgreSQL's pg_dump.c, its DumpableObjectType; base types, which take
functions in C, are made with PostgreSQL's own.
"""
from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from restores import paused, restored, verifying
from servers import Executor, Postgres, SeaweedFS, temporary_folder
from surroundings import Scene
from timescale import PAUSE, PAUSING


class Kind(NamedTuple):
    """A kind of object: SQL that makes one, and a condition that holds where it is there."""

    name: str
    make: str
    there: str


# In an order in which they can be made; {role} owns, and is granted. `@catalog …` is that it has
# such a row.
KINDS = [Kind(*(part.strip() for part in row.split("|"))) for row in """
schema | CREATE SCHEMA k AUTHORIZATION {role} | to_regnamespace('k') IS NOT NULL
extension | CREATE EXTENSION hstore SCHEMA k | @pg_extension extname = 'hstore'
enum | CREATE TYPE k.mood AS ENUM ('good', 'bad') | enum_last(NULL::k.mood)::text = 'bad'
domain | CREATE DOMAIN k.few AS int CHECK (VALUE < 9) | NOT pg_input_is_valid('10', 'k.few')
composite type | CREATE TYPE k.pair AS (a int, b text) | (ROW(1, 'x')::k.pair).b = 'x'
range type | CREATE TYPE k.span AS RANGE (subtype = float8) | '[1,2]'::k.span @> 1.5::float8
shell type | CREATE TYPE k.shell | @pg_type typname = 'shell' AND NOT typisdefined
base type | CREATE TYPE k.base; CREATE FUNCTION k.base_in(cstring) RETURNS k.base LANGUAGE internal
    STRICT IMMUTABLE AS 'textin'; CREATE FUNCTION k.base_out(k.base) RETURNS cstring LANGUAGE
    internal STRICT IMMUTABLE AS 'textout';
    CREATE TYPE k.base (INPUT = k.base_in, OUTPUT = k.base_out, LIKE = text) |
    @pg_type typname = 'base' AND typisdefined
function | CREATE FUNCTION k.twice(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 2 * $1' |
    k.twice(2) = 4
procedure | CREATE PROCEDURE k.nothing() LANGUAGE sql AS '' | to_regprocedure('k.nothing()') > 0
aggregate | CREATE AGGREGATE k.total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0') |
    (SELECT k.total(i) FROM generate_series(1, 3) i) = 6
operator | CREATE OPERATOR k.<+> (LEFTARG = int, RIGHTARG = int, FUNCTION = int4pl) |
    1 OPERATOR(k.<+>) 2 = 3
operator family | CREATE OPERATOR FAMILY k.family USING btree | @pg_opfamily opfname = 'family'
operator class | CREATE OPERATOR CLASS k.class FOR TYPE int USING btree FAMILY k.family AS
    OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >,
    FUNCTION 1 btint4cmp(int, int) | @pg_opclass opcname = 'class'
access method | CREATE ACCESS METHOD k_heap TYPE TABLE HANDLER heap_tableam_handler |
    @pg_am amname = 'k_heap'
collation | CREATE COLLATION k.german (locale = 'C') | 'a' > 'B' COLLATE k.german
conversion | CREATE CONVERSION k.latin FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8 |
    @pg_conversion conname = 'latin'
language | CREATE FUNCTION k.handler() RETURNS language_handler LANGUAGE c AS
    '$libdir/plpgsql', 'plpgsql_call_handler'; CREATE LANGUAGE k_lang HANDLER k.handler |
    @pg_language lanname = 'k_lang'
transform | CREATE TRANSFORM FOR int LANGUAGE k_lang (FROM SQL WITH FUNCTION
    prsd_lextype(internal), TO SQL WITH FUNCTION int4recv(internal)) | @pg_transform oid >= 16384
cast | CREATE FUNCTION k.number(k.mood) RETURNS int LANGUAGE sql AS 'SELECT length($1::text)';
    CREATE CAST (k.mood AS int) WITH FUNCTION k.number(k.mood) | 'bad'::k.mood::int = 3
text search parser | CREATE TEXT SEARCH PARSER k.parser (START = prsd_start,
    GETTOKEN = prsd_nexttoken, END = prsd_end, LEXTYPES = prsd_lextype) |
    @pg_ts_parser prsname = 'parser'
text search template | CREATE TEXT SEARCH TEMPLATE k.template (INIT = dsimple_init,
    LEXIZE = dsimple_lexize) | @pg_ts_template tmplname = 'template'
text search dictionary | CREATE TEXT SEARCH DICTIONARY k.words (TEMPLATE = k.template) |
    ts_lexize('k.words', 'Word') = '{{word}}'
text search configuration | CREATE TEXT SEARCH CONFIGURATION k.search (PARSER = k.parser);
    ALTER TEXT SEARCH CONFIGURATION k.search ADD MAPPING FOR asciiword WITH k.words |
    to_tsvector('k.search', 'Word') = 'word:1'
foreign-data wrapper | CREATE FOREIGN DATA WRAPPER k_wrapper | @pg_foreign_data_wrapper
    fdwname = 'k_wrapper'
foreign server | CREATE SERVER k_server FOREIGN DATA WRAPPER k_wrapper OPTIONS (host 'there') |
    @pg_foreign_server srvoptions = '{{host=there}}'
user mapping | CREATE USER MAPPING FOR {role} SERVER k_server OPTIONS (password 'hidden') |
    @pg_user_mapping umoptions = '{{password=hidden}}'
foreign table | CREATE FOREIGN TABLE k.far (i int) SERVER k_server |
    @pg_foreign_table ftrelid = 'k.far'::regclass
table, its rows | CREATE TABLE k.t (i int PRIMARY KEY, j int UNIQUE, doc k.hstore, d k.few);
    INSERT INTO k.t (i, j, doc) SELECT i, -i, k.hstore('a', i::text) FROM generate_series(1, 99) i |
    (SELECT sum(i - j) FROM ONLY k.t) = 9900 AND (SELECT doc OPERATOR(k.->) 'a' FROM ONLY k.t
    WHERE i = 7) = '7'
defaults | ALTER TABLE k.t ALTER j SET DEFAULT 7; ALTER TABLE k.t ADD g int GENERATED ALWAYS AS
    (i + 1) STORED | (SELECT sum(g) FROM ONLY k.t) = 5049 AND @pg_attrdef adrelid = 'k.t'::regclass
identity, sequence's value | CREATE TABLE k.ids (i int GENERATED ALWAYS AS IDENTITY);
    INSERT INTO k.ids SELECT FROM generate_series(1, 41) | nextval('k.ids_i_seq') > 41
sequence | CREATE SEQUENCE k.seq INCREMENT 3; SELECT setval('k.seq', 300) | nextval('k.seq') > 300
unlogged table, its rows | CREATE UNLOGGED TABLE k.fast AS SELECT 1 AS i |
    (SELECT count(*) FROM k.fast) = 1
typed table | CREATE TABLE k.typed OF k.pair; INSERT INTO k.typed VALUES (1, 'x') |
    (SELECT b FROM k.typed) = 'x'
partitions | CREATE TABLE k.parts (i int) PARTITION BY RANGE (i);
    CREATE TABLE k.part PARTITION OF k.parts FOR VALUES FROM (0) TO (9);
    CREATE INDEX ON k.parts (i); INSERT INTO k.parts VALUES (5) |
    (SELECT count(*) FROM k.part) = 1 AND (SELECT count(*) FROM pg_partition_tree('k.parts')) = 2
    AND (SELECT count(*) FROM pg_inherits WHERE inhrelid = 'k.part_i_idx'::regclass) = 1
inheritance | CREATE TABLE k.heir (more int) INHERITS (k.t); INSERT INTO k.heir (i) VALUES (100) |
    (SELECT count(*) FROM k.t) = 100
access method of a table | CREATE TABLE k.heaped (i int) USING k_heap |
    @pg_class relname = 'heaped' AND relam = (SELECT oid FROM pg_am WHERE amname = 'k_heap')
index | CREATE INDEX k_index ON k.t (k.twice(i)) WHERE i > 3 | to_regclass('k.k_index') > 0
clustering | CREATE INDEX k_index_plain ON k.t (i); ALTER TABLE k.t CLUSTER ON k_index_plain |
    @pg_index indisclustered AND indrelid =
    'k.t'::regclass
extended statistics | CREATE STATISTICS k.stats ON i, j FROM k.t | @pg_statistic_ext
    stxname = 'stats'
check | ALTER TABLE k.t ADD CONSTRAINT fits CHECK (i > 0) | @pg_constraint conname = 'fits'
exclusion | ALTER TABLE k.ids ADD CONSTRAINT apart EXCLUDE (i WITH =) |
    @pg_constraint conname = 'apart'
foreign key | ALTER TABLE k.ids ADD CONSTRAINT refers FOREIGN KEY (i) REFERENCES k.t |
    @pg_constraint conname = 'refers' AND convalidated
foreign key that is not valid | CREATE TABLE k.loose (i int); INSERT INTO k.loose VALUES (999);
    ALTER TABLE k.loose ADD CONSTRAINT later FOREIGN KEY (i) REFERENCES k.t NOT VALID |
    (SELECT i FROM k.loose) = 999 AND @pg_constraint conname = 'later' AND NOT convalidated
rows without columns | CREATE TABLE k.bare (); INSERT INTO k.bare SELECT FROM k.t |
    (SELECT count(*) FROM k.bare) = 100
replica identity | CREATE UNIQUE INDEX k_other ON k.t (i) INCLUDE (j); ALTER TABLE k.t REPLICA
    IDENTITY USING INDEX k_other | @pg_index indisreplident AND indrelid = 'k.t'::regclass
body that takes a key | CREATE FUNCTION k.whole() RETURNS bigint LANGUAGE sql BEGIN ATOMIC
    SELECT sum(j) FROM (SELECT i, j FROM k.t GROUP BY i) AS x; END;
    ALTER TABLE k.loose ADD whole bigint DEFAULT k.whole() |
    @pg_attrdef adrelid = 'k.loose'::regclass
rule | CREATE RULE quiet AS ON DELETE TO k.typed DO INSTEAD NOTHING | @pg_rules rulename = 'quiet'
trigger | CREATE TRIGGER same BEFORE UPDATE ON k.t FOR EACH ROW EXECUTE FUNCTION
    suppress_redundant_updates_trigger(); ALTER TABLE k.t ENABLE ALWAYS TRIGGER same |
    @pg_trigger tgname = 'same' AND tgenabled = 'A'
view | CREATE VIEW k.seen AS SELECT count(*) FROM k.t | (SELECT count FROM k.seen) = 100
materialized view, its rows | CREATE MATERIALIZED VIEW k.kept AS SELECT count(*) FROM k.t |
    (SELECT count FROM k.kept) = 100
policy | ALTER TABLE k.typed ENABLE ROW LEVEL SECURITY; ALTER TABLE k.typed FORCE ROW LEVEL
    SECURITY;
    CREATE POLICY own ON k.typed TO {role} USING (a > 0) | @pg_policies policyname = 'own'
large object | SELECT lo_from_bytea(4712, 'large') | lo_get(4712) = 'large'
event trigger | CREATE FUNCTION k.event() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
    CREATE EVENT TRIGGER k_event ON ddl_command_end EXECUTE FUNCTION k.event() |
    @pg_event_trigger evtname = 'k_event'
publication | CREATE SCHEMA k_other; CREATE PUBLICATION k_feed FOR TABLE k.t WHERE (i > 3),
    TABLES IN SCHEMA k_other |
    @pg_publication_rel oid > 0 AND @pg_publication_namespace oid > 0
subscription | CREATE SUBSCRIPTION {subscription} CONNECTION 'host=nowhere.invalid password=hidden'
    PUBLICATION there WITH (connect = false) | @pg_subscription subdbid = (SELECT oid FROM
    pg_database WHERE datname = current_database()) AND NOT subenabled
comment | COMMENT ON TABLE k.t IS 'a table' | obj_description('k.t'::regclass) = 'a table'
owner | ALTER TABLE k.t OWNER TO {role} |
    (SELECT relowner = to_regrole('{role}') FROM pg_class WHERE oid = 'k.t'::regclass)
privileges | GRANT SELECT (i) ON k.ids TO {role}; GRANT UPDATE ON LARGE OBJECT 4712 TO {role} |
    has_column_privilege('{role}', 'k.ids', 'i', 'SELECT')
default privileges | ALTER DEFAULT PRIVILEGES IN SCHEMA k GRANT SELECT ON TABLES TO {role} |
    @pg_default_acl defaclnamespace = 'k'::regnamespace
settings of the database | ALTER DATABASE {database} SET work_mem = '7MB' | @pg_db_role_setting
    setrole = 0 AND setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
settings of a role in it | ALTER ROLE {role} IN DATABASE {database} SET work_mem = '8MB' |
    @pg_db_role_setting setrole > 0 AND setdatabase = (SELECT oid FROM pg_database
    WHERE datname = current_database())
comment on the database | COMMENT ON DATABASE {database} IS 'it' | shobj_description((SELECT oid
    FROM pg_database WHERE datname = current_database()), 'pg_database') = 'it'
""".strip().replace("\n    ", " ").splitlines()]


def condition(text: str) -> str:
    """A condition, in which `@catalog …` is that such a row is there."""
    return re.sub(r"@(\w+) (.*?)(?= AND @|$)", r"EXISTS (SELECT FROM \1 WHERE \2)", text)


class Kinds(Scene):
    """A database with one of each kind, and a backup of it."""

    names: dict[str, str]

    def make(self) -> None:
        token = secrets.token_hex(4)
        self.names = {"role": f"role_{token}", "subscription": f"feed_{token}",
                      "database": self.database}
        self.sql(f"CREATE ROLE {self.names['role']}; {PAUSE}")
        for kind in KINDS:
            self.sql(kind.make.format(**self.names))
        self.sql("CREATE MATERIALIZED VIEW zz AS SELECT public.pause()")

    def missing(self, database: str) -> list[str]:
        """The kinds of which there is none, or not as it was."""
        asked = ";\n".join(
            f"SELECT $${kind.name}$$ WHERE {condition(kind.there)}" for kind in KINDS)
        there = self.postgres.run("psql", "-XAtq", "-f", "-", database=database,
                                  stdin=asked.format(**self.names)).splitlines()
        return [kind.name for kind in KINDS if kind.name not in there]

    @contextlib.contextmanager
    def new(self) -> Iterator[str]:
        """The name of a database to make, which is dropped at the end."""
        name = f"{self.database}_new"
        yield name
        self.drop(name)

    def drop(self, database: str) -> None:
        """A subscription would hinder that, also one that subscribes to nothing."""
        self.postgres.sql("""SELECT format('ALTER SUBSCRIPTION %I SET (slot_name = NONE)', subname),
            format('DROP SUBSCRIPTION %I', subname) FROM pg_subscription WHERE subdbid = (SELECT oid
            FROM pg_database WHERE datname = current_database()) \\gexec""", database)
        self.postgres.sql(f"DROP DATABASE {database} WITH (FORCE)")


@pytest.fixture(scope="module")
def kinds(backup_servers: tuple[Postgres, SeaweedFS]) -> Iterator[Kinds]:
    postgres, s3 = backup_servers
    name = f"kinds_{secrets.token_hex(4)}"
    with temporary_folder() as folder:
        postgres.sql(f"CREATE DATABASE {name}")
        made = Kinds(postgres, s3, folder, name, name)
        made.make()
        assert made.missing(name) == []
        made.backup()
        yield made
        made.drop(name)
        postgres.sql(f"DROP ROLE {made.names['role']}")


# Of a role, without which all else is there.
OF_ROLES = ["owner", "privileges", "default privileges"]
OF_THE_DATABASE = ["settings of the database", "settings of a role in it",
                   "comment on the database"]


@pytest.mark.parametrize("options, left_out", [([], []), (["--no-owner"], OF_ROLES)],
                         ids=["restore", "--no-owner"])
def test_restore_brings_one_object_of_each_kind(
        kinds: Kinds, options: list[str], left_out: list[str]) -> None:
    with kinds.new() as new:
        restored(kinds, "latest", "--database", new, *options)
        assert kinds.missing(new) == left_out


def test_verify_restores_all_that_holds_data(kinds: Kinds) -> None:
    """Looked at while the last of its materialized views is made."""
    settings = {**kinds.settings, **PAUSING, **verifying(kinds.postgres)}
    with Executor(settings, "verify") as executor:
        missing = kinds.missing(paused(kinds.postgres))
        executor.stop()
    later = "event trigger"  # it may refuse what would come after it
    assert missing == [later, "publication", "subscription", *OF_ROLES, *OF_THE_DATABASE]
    report = json.loads(kinds.run("verify", **verifying(kinds.postgres)).stdout)
    assert any("owners, privileges, tablespaces, publications" in text
               for text in report["not_proven"])


def test_by_hand_brings_one_object_of_each_kind_but_what_is_the_databases_own(kinds: Kinds) -> None:
    """That is made from a list of its own, as README has it."""
    with kinds.new() as new:
        kinds.postgres.sql(f"CREATE DATABASE {new}")
        file = kinds.folder / "archive"
        file.write_bytes(next(iter(kinds.objects().values())))
        kinds.postgres.run("pg_restore", "--exit-on-error", "-d", new, str(file))
        assert kinds.missing(new) == OF_THE_DATABASE
