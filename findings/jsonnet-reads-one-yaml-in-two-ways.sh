#!/usr/bin/env bash
# jsonnet's two implementations read one YAML file in two ways: `yes`, 0640, `~`, `<<` and `*alias` differ.
#
# jsonnet (C++) 0.22.0 and gojsonnet (Go) 0.22.0 (PyPI), of one project and one version. std.parseYaml() brings
# values of YAML files into dashboards and rules that are written in jsonnet; its description says that it
# does not do all of YAML, and one would look for an error there. But each takes the file and says something
# else. What Go has as true, 416 and null is the text "yes", "0640" and "~" for C++, so that a comparison
# with true or null goes the other way; `*alias` is the text "*alias", and a merge key is a field
# with the name "<<", so that what it brings is not there.
#
# Seen: the two objects below; equal in numbers, quoted texts and true.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check jsonnet==0.22.0 gojsonnet==0.22.0
cat > "$folder/values.yaml" <<'YAML'
defaults: &defaults {severity: page}
alert:
  <<: *defaults
  for: 10m
same: *defaults
enabled: yes
muted: off
mode: 0640
team: ~
plain: true
quoted: "0640"
number: 26
YAML
cat > "$folder/try.py" <<'PYTHON'
import importlib
import json
import sys

PROGRAM = "std.parseYaml(importstr 'values.yaml')"
text = open(sys.argv[2], "rb").read()
jsonnet = importlib.import_module(sys.argv[1])
print(json.dumps(json.loads(jsonnet.evaluate_snippet(
    "it", PROGRAM, import_callback=lambda folder, name: (name, text))), sort_keys=True))
PYTHON
for each in _jsonnet _gojsonnet; do # in one process each: both bring the same symbols
    "$folder/env/bin/python" "$folder/try.py" "$each" "$folder/values.yaml" > "$folder/$each"
    echo "$each: $(cat "$folder/$each")"
done
python3 - "$folder/_jsonnet" "$folder/_gojsonnet" <<'PYTHON'
import json
import sys

plain, go = (json.load(open(path)) for path in sys.argv[1:])
alike = {"defaults": {"severity": "page"}, "plain": True, "quoted": "0640", "number": 26}
assert plain == {**alike, "alert": {"<<": "*defaults", "for": "10m"}, "same": "*defaults",
                 "enabled": "yes", "muted": "off", "mode": "0640", "team": "~"}
assert go == {**alike, "alert": {"severity": "page", "for": "10m"}, "same": {"severity": "page"},
              "enabled": True, "muted": False, "mode": 416, "team": None}
PYTHON
