#!/usr/bin/env bash
# prometheus_client's parser gives a counter's samples a name that is not in the text.
#
# prometheus-client 0.26.0 (PyPI). Prometheus' text format asks no counter to end in "_total", and
# Prometheus stores each sample by the name that it reads. One would think that a parser of this format
# (text_string_to_metric_families, not the one of OpenMetrics) gives those names, so that a test
# may look for what an alert asks. It adds "_total" to a counter's samples that lack it; a gauge that
# has it keeps it, and so does a counter, whose family loses it. A rule for "backup_failures_total"
# passes such a test, and never fires, since Prometheus has "backup_failures".
#
# Seen: "backup_failures 3" of a counter is read as backup_failures_total; of a gauge, as it stands.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check prometheus-client==0.26.0
"$folder/env/bin/python" - <<'PYTHON'
from prometheus_client.parser import text_string_to_metric_families


def read(text):
    return [(family.name, [(sample.name, sample.value) for sample in family.samples])
            for family in text_string_to_metric_families(text)]


counter = read("# TYPE backup_failures counter\nbackup_failures 3\n")
gauge = read("# TYPE backup_failures gauge\nbackup_failures 3\n")
total = read("# TYPE backup_failures_total counter\nbackup_failures_total 3\n")
print(f"counter: {counter}; gauge: {gauge}; counter with _total: {total}")
assert counter == total == [("backup_failures", [("backup_failures_total", 3)])]
assert gauge == [("backup_failures", [("backup_failures", 3)])]
PYTHON
