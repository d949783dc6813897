"""Write values.yaml's comments into values.schema.json, as the descriptions of its values.

    python3 test_backup_executor.py python helm/ci/describe.py
"""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

CHART = Path(__file__).resolve().parents[1]
SCHEMA = CHART / "values.schema.json"


def comments() -> dict[str, tuple[str, str]]:
    """Of each path in values.yaml the comment, beside or above it, and its parent's."""
    found, above, path = {"": ("", "")}, "", [""]
    for line in (CHART / "values.yaml").read_text("utf-8").splitlines():
        if match := re.match(r"( *)(\w+):(?:.*?\s#(.*))?", line):
            path = [*path[:len(match[1]) // 2 + 1], match[2]]
            parent = found[".".join(path[1:-1])][0]
            found[".".join(path[1:])] = above + (match[3] or ""), parent
        above = above + line if line.lstrip().startswith("#") else ""
    return found


def descriptions() -> dict[str, str]:
    """Of each path in values.yaml its own comment, where that has words."""
    texts = {path: " ".join(own.replace("#", " ").split()) for path, (own, _) in comments().items()}
    return {path: text for path, text in texts.items() if re.search("[a-z]{2}", text)}


def described(node: dict[str, Any], texts: dict[str, str], path: str = "") -> dict[str, Any]:
    """A schema with the descriptions that TEXTS have by their paths, and no others."""
    node = {key: value for key, value in node.items() if key != "description" or not path}
    if path in texts:
        node = {"description": texts[path], **node}
    if "properties" in node:
        node["properties"] = {name: described(each, texts, f"{path}.{name}".lstrip("."))
                              for name, each in node["properties"].items()}
    return node


def written(value: Any, indent: str = "") -> str:
    """JSON with what fits on one line; and with what doesn't on several."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(indent + flat) <= 90 or not value or not isinstance(value, (dict, list)):
        return flat
    inner = indent + "  "
    if isinstance(value, list):
        lines = [written(each, inner) for each in value]
    else:
        lines = [f"{json.dumps(key)}: {written(each, inner)}" for key, each in value.items()]
    first, last = "[]" if isinstance(value, list) else "{}"
    return f"{first}\n{inner}" + f",\n{inner}".join(lines) + f"\n{indent}{last}"


if __name__ == "__main__":
    schema = json.loads(SCHEMA.read_text("utf-8"))
    SCHEMA.write_text(written(described(schema, descriptions())) + "\n", "utf-8")
