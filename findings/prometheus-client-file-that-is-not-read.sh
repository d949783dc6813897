#!/usr/bin/env bash
# prometheus_client: one name with a dot, and the text file it writes is refused whole by Debian's node exporter.
#
# prometheus-client 0.26.0 and 0.20.0 (PyPI), prometheus-node-exporter 1.5.0 (Debian 12). Up to 0.20 a name such as
# "backup.size" was a ValueError where the metric is made. Newer ones take it, as Prometheus 3 does,
# and in an HTTP answer and by generate_latest() it is "backup_size" for whoever does not ask for more. One
# would think that the file for the node exporter, which can't ask, has that as well. But
# write_to_textfile() has another default and writes {"backup.size"}, and an exporter that
# knows the older format refuses the file, with all that was in it before: an alert on the age of the last
# backup has no data any more. What tells is node_textfile_scrape_error alone.
#
# Seen: 0.20 ValueError; 0.26 both metrics by generate_latest, none of the file, scrape_error 1; without the name, 0.
set -euo pipefail
folder=$(mktemp -d)
server=""
finish() { [[ -z $server ]] || { kill "$server"; wait "$server" 2>/dev/null || true; }; rm -rf "$folder"; }
trap finish EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check prometheus-client==0.26.0
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check --target "$folder/older" prometheus-client==0.20.0
# Unpacked, not installed: what the machine has stays as it is.
package=prometheus-node-exporter=1.5.0-1+b6
mkdir "$folder/packages" "$folder/root" "$folder/files"
(cd "$folder/packages" && { apt-get -q -o APT::Sandbox::User=root download "$package" ||
    { apt-get -q update && apt-get -q -o APT::Sandbox::User=root download "$package"; }; } \
    > "$folder/apt.log" 2>&1 && dpkg -x prometheus-node-exporter_*.deb "$folder/root")
exporter=$folder/root/usr/bin/prometheus-node-exporter
"$exporter" --version 2>&1 | head -n 1
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$exporter" --web.listen-address="127.0.0.1:$port" --collector.disable-defaults --collector.textfile \
    --collector.textfile.directory="$folder/files" > "$folder/exporter.log" 2>&1 &
server=$!

cat > "$folder/older.py" <<'PYTHON'
from prometheus_client import Gauge

try:
    Gauge("backup.size", "of the last one")
except ValueError as error:
    print(f"0.20: ValueError: {error}")
else:
    raise SystemExit("0.20 takes the name, too")
PYTHON
PYTHONPATH=$folder/older "$folder/env/bin/python" "$folder/older.py"
cat > "$folder/try.py" <<'PYTHON'
import re
import sys
import time
import urllib.request

from prometheus_client import CollectorRegistry, Gauge, generate_latest, write_to_textfile

url, path = sys.argv[1:]


def scraped():
    """What of the file's metrics the exporter hands on, and whether it tells of an error."""
    end = time.monotonic() + 60
    while True:  # it is only beginning
        try:
            text = urllib.request.urlopen(url).read().decode()
            break
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
    return re.findall("^(backup[^ {]*) ", text, re.MULTILINE), re.search("^node_textfile_scrape_error (.)", text, re.MULTILINE)[1]


registry = CollectorRegistry()
Gauge("backup_last_success_seconds", "when", registry=registry).set(1796000000)
write_to_textfile(path, registry)
before = scraped()
Gauge("backup.size", "of the last one", registry=registry).set(29073116)
write_to_textfile(path, registry)
after = scraped()
latest = re.findall("^(backup[^ {]*) ", generate_latest(registry).decode(), re.MULTILINE)
print(open(path).read().splitlines()[-1])
print(f"generate_latest: {latest}; of the file, before (metrics, error): {before}; with the name: {after}")
assert latest == ["backup_last_success_seconds", "backup_size"]
assert before == (["backup_last_success_seconds"], "0") and after == ([], "1")
PYTHON
"$folder/env/bin/python" "$folder/try.py" "http://127.0.0.1:$port/metrics" "$folder/files/backup.prom"
