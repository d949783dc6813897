#!/usr/bin/env bash
# moto: what is put or deleted where versioning is suspended takes all earlier versions with it.
#
# moto 5.2.5 (PyPI: moto[server] 5.2.5), boto3 1.44.5. In S3 a bucket whose versioning is suspended keeps the
# versions that it has; what is put then is the version "null", which only an earlier "null" gives way
# to, and what is deleted gets a delete marker. One would think that moto, which has versions, markers
# and the state Suspended, does the same, as SeaweedFS does. But it forgets all versions of that key at
# the next put, and at the next delete the key altogether. So a test of what happens after somebody
# suspends versioning (is the old backup still there? does a cleanup find the old versions?) tells
# the opposite of what S3 does.
#
# Seen: 2 versions; suspended, 2; put once more, 1 ("null"); another key deleted, 0 and no marker.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -TERM "$server"; wait "$server" 2>/dev/null || true; }; rm -rf "$folder"; }
trap finish EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check 'moto[server]==5.2.5' boto3==1.44.5
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$folder/env/bin/moto_server" -H 127.0.0.1 -p "$port" > "$folder/server.log" 2>&1 &
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


def versioning(status):
    s3.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": status})


def there(key):
    found = s3.list_object_versions(Bucket="bucket", Prefix=key)
    return [len(found.get(kind, [])) for kind in ("Versions", "DeleteMarkers")]


versioning("Enabled")
for key in ("put", "deleted"):
    for body in (b"1", b"2"):
        s3.put_object(Bucket="bucket", Key=key, Body=body)
enabled = [there("put"), there("deleted")]
versioning("Suspended")
suspended = [there("put"), there("deleted")]
s3.put_object(Bucket="bucket", Key="put", Body=b"3")
s3.delete_object(Bucket="bucket", Key="deleted")
after = [there("put"), there("deleted")]
print(f"versions and markers of two keys: {enabled}; suspended: {suspended}; after a put of the "
      f"one, and a delete of the other: {after}, in S3 [[3, 0], [2, 1]]")
assert enabled == suspended == [[2, 0], [2, 0]] and after == [[1, 0], [0, 0]]
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:$port"
