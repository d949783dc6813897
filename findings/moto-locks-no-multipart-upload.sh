#!/usr/bin/env bash
# moto: what comes by a multipart upload is not locked, and a COMPLIANCE lock can be shortened.
#
# moto 5.2.5, boto3 1.44.5 (PyPI). moto knows Object Lock: a locked version can't be deleted, and a bucket's default
# retention is put onto what PutObject brings. One would think that a test with it tells whether one's
# backups are locked, whatever their size. But CreateMultipartUpload's lock headers are taken and
# forgotten, and the bucket's default is not applied to what such an upload makes, so that from
# upload_file's 8 MiB on all is unlocked and a pruning that should be refused passes. And COMPLIANCE, which
# in S3 nobody can shorten or weaken until it is over, becomes a day less, or GOVERNANCE, with 200.
#
# Seen: by put AccessDenied for the version, by multipart it goes; COMPLIANCE of 2 days becomes 1 hour, then GOVERNANCE.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill "$server"; wait "$server" 2>/dev/null || true; }; rm -rf "$folder"; }
trap finish EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check "moto[server]==5.2.5" boto3==1.44.5
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$folder/env/bin/moto_server" -H 127.0.0.1 -p "$port" > "$folder/server.log" 2>&1 &
server=$!

cat > "$folder/try.py" <<'PYTHON'
import datetime
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
        s3.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
        break
    except (BotoCoreError, ClientError):
        if time.monotonic() > end:
            raise
        time.sleep(0.2)
now = datetime.datetime.now(datetime.timezone.utc)
lock = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": now + datetime.timedelta(days=2)}


def put(bucket, key, lock):
    s3.put_object(Bucket=bucket, Key=key, Body=b"bytes", **lock)


def multipart(bucket, key, lock):
    which = {"Bucket": bucket, "Key": key}
    which["UploadId"] = s3.create_multipart_upload(**which, **lock)["UploadId"]
    part = s3.upload_part(**which, PartNumber=1, Body=b"bytes")
    s3.complete_multipart_upload(**which, MultipartUpload={"Parts": [
        {"PartNumber": 1, "ETag": part["ETag"]}]})


def after(bucket, way, lock):
    """The mode that the object has, and what comes of deleting its version."""
    key = way.__name__
    way(bucket, key, lock)
    head = s3.head_object(Bucket=bucket, Key=key)
    try:
        s3.delete_object(Bucket=bucket, Key=key, VersionId=head["VersionId"])
        return head.get("ObjectLockMode"), "gone"
    except ClientError as error:
        return head.get("ObjectLockMode"), error.response["Error"]["Code"]


s3.create_bucket(Bucket="default", ObjectLockEnabledForBucket=True)
s3.put_object_lock_configuration(Bucket="default", ObjectLockConfiguration={
    "ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}})
seen = [after(bucket, way, asked) for bucket, asked in (("locked", lock), ("default", {}))
        for way in (put, multipart)]
modes = []
for mode in ("COMPLIANCE", "GOVERNANCE"):
    s3.put_object_retention(Bucket="locked", Key="put", Retention={
        "Mode": mode, "RetainUntilDate": now + datetime.timedelta(hours=1)})
    kept = s3.head_object(Bucket="locked", Key="put")
    left = kept["ObjectLockRetainUntilDate"] - now
    modes.append((kept["ObjectLockMode"], round(left.total_seconds() / 3600)))
print(f"asked for: by put {seen[0]}, by multipart {seen[1]}; by the bucket's default: {seen[2]}, {seen[3]}; "
      f"COMPLIANCE of 48 hours became {modes}")
assert seen == [("COMPLIANCE", "AccessDenied"), (None, "gone")] * 2
assert modes == [("COMPLIANCE", 1), ("GOVERNANCE", 1)]
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:$port"
