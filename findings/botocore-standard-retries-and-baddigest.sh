#!/usr/bin/env bash
# botocore's "standard" retries, the default now, give up at what arrived damaged; "legacy" sent it again.
#
# boto3 1.44.5, botocore 1.44.8 (PyPI), which without a retry mode is "standard"; it was "legacy". A body that
# does not fit the checksum that came with it is BadDigest (400), and the remedy is to send it again.
# One would think that "standard", which is said to retry more kinds of errors, retries what "legacy"
# did, with fewer tries. Of S3's own errors it has kept RequestTimeout, SlowDown, InternalError; but
# BadDigest is not among what it takes for transient. So one damaged part of a large upload, which
# nobody noticed up to now, ends the upload after an update of boto3, and all of its parts are lost.
#
# Seen: a server that says BadDigest to part 2 the first time: legacy sends it 2 times and has the object;
# standard, and no mode, 1 time, and BadDigest; RequestTimeout and SlowDown in its place: all of them 2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check boto3==1.44.5 botocore==1.44.8
cat > "$folder/try.py" <<'PYTHON'
import http.server
import io
import threading

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

CREATED = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
COMPLETED = b'<CompleteMultipartUploadResult><ETag>"1"</ETag></CompleteMultipartUploadResult>'
said, asked = [], []


class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b""):
        self.send_response(status)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, CREATED if "uploads" in self.path else COMPLETED)

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if "partNumber=2" in self.path:
            asked.append(self.path)
            if len(asked) == 1:
                status, code = said[0]
                return self.answer(status, f"<Error><Code>{code}</Code></Error>".encode())
        return self.answer(200)

    def do_DELETE(self):
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()


def upload(mode, status, code):
    said[:], asked[:] = [(status, code)], []
    s3 = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{server.server_port}",
                      region_name="us-east-1", aws_access_key_id="finding",
                      aws_secret_access_key="finding-secret",
                      config=Config(retries={"mode": mode} if mode else None))
    how = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20, use_threads=False)
    try:
        s3.upload_fileobj(io.BytesIO(bytes(11 << 20)), "bucket", "key", Config=how)
        end = "uploaded"
    except ClientError as error:
        end = error.response["Error"]["Code"]
    return len(asked), end


found = {}
for status, code in ((400, "BadDigest"), (400, "RequestTimeout"), (503, "SlowDown")):
    found[code] = [upload(mode, status, code) for mode in ("legacy", "standard", None)]
    print(f"{code}: legacy, standard, none given: {found[code]}")
assert found == {"BadDigest": [(2, "uploaded"), (1, "BadDigest"), (1, "BadDigest")],
                 "RequestTimeout": [(2, "uploaded")] * 3, "SlowDown": [(2, "uploaded")] * 3}
server.shutdown()
PYTHON
env -u AWS_RETRY_MODE -u AWS_MAX_ATTEMPTS AWS_CONFIG_FILE="$folder/none" \
    "$folder/env/bin/python" "$folder/try.py"
