#!/usr/bin/env bash
# botocore calls a connection that was cut while it sent "SSL validation failed", certificates and all.
#
# botocore 1.44.8 (PyPI: boto3 1.44.5). A server that goes away in the middle of a PUT is over http
# a ConnectionClosedError. One would think that it is one over https, too, once the handshake is done
# and the certificate proven. It is an SSLError, "SSL validation failed for https://…", the class and
# the words of a certificate that is not trusted; only its last words, of an EOF, tell the two apart.
# A program that asks again after the one and gives up at once after the other, which looks right,
# gives up for good when a gateway starts again during an upload.
#
# Seen: the same cut, five times each: http ConnectionClosedError, https SSLError with "EOF"; a
# certificate of a stranger: SSLError with CERTIFICATE_VERIFY_FAILED.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check boto3==1.44.5 botocore==1.44.8 trustme==1.2.1
cat > "$folder/try.py" <<'PYTHON'
import socket
import ssl
import sys
import threading

import boto3
import trustme
from botocore.config import Config
from botocore.exceptions import BotoCoreError

authority, stranger = trustme.CA(), trustme.CA()
authority.cert_pem.write_to_path(f"{sys.argv[1]}/right.pem")
stranger.cert_pem.write_to_path(f"{sys.argv[1]}/stranger.pem")
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
authority.issue_cert("127.0.0.1").configure_cert(tls)


def serve(listener, context):
    """Read 1 kB of each connection's first request, and hang up."""
    while True:
        connection, _ = listener.accept()
        try:
            if context:
                connection = context.wrap_socket(connection, server_side=True)
            connection.recv(1000)
        except OSError:
            pass
        connection.close()


def put(scheme, context, trusted=True):
    """What an upload of 6 MiB to such a server raises."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(listener, context), daemon=True).start()
    s3 = boto3.client("s3", endpoint_url=f"{scheme}://127.0.0.1:{listener.getsockname()[1]}",
                      region_name="us-east-1", aws_access_key_id="finding",
                      aws_secret_access_key="finding-secret", verify=trusted,
                      config=Config(retries={"total_max_attempts": 1},
                                    request_checksum_calculation="when_required"))
    try:
        s3.put_object(Bucket="bucket", Key="key", Body=bytes(6 * 1024 * 1024))
    except BotoCoreError as error:
        return type(error).__name__, str(error)
    return "stored", ""


plain = [put("http", None) for _ in range(5)]
secure = [put("https", tls, f"{sys.argv[1]}/right.pem") for _ in range(5)]
strange = put("https", tls, f"{sys.argv[1]}/stranger.pem")
print(*sorted({name for name, _ in plain}), secure[0], strange, sep="\n")
assert {name for name, _ in plain} == {"ConnectionClosedError"}
assert all(name == "SSLError" and "SSL validation failed" in text and "EOF" in text
           and "CERTIFICATE" not in text for name, text in secure)
assert strange[0] == "SSLError" and "CERTIFICATE_VERIFY_FAILED" in strange[1]
PYTHON
"$folder/env/bin/python" "$folder/try.py" "$folder"
