"""The tests of how the module reads: limits on what a reader takes in, and a map that is right."""
from __future__ import annotations

import ast
import io
import re
import tokenize

from environment import EXECUTOR

SOURCE = EXECUTOR.read_text("utf-8")
TREE = ast.parse(SOURCE)
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
          tokenize.ENDMARKER}
TOKENS = [token.start[0] for token in tokenize.generate_tokens(io.StringIO(SOURCE).readline)
          if token.type not in LAYOUT]
# In all. A feature that needs more has to be worth it: look first for what can be simplified.
MOST_TOKENS = 52_600
Defined = ast.FunctionDef | ast.ClassDef
DEFINED = [node for node in ast.walk(TREE) if isinstance(node, Defined)]


def decisions(tree: ast.AST) -> tuple[int, int]:
    """How many decisions are in statements, and how many in expressions."""
    nodes = list(ast.walk(tree))
    whole = (ast.If, ast.For, ast.While, ast.ExceptHandler)
    partly = (ast.IfExp, ast.comprehension, ast.NamedExpr, ast.Lambda)
    inner = sum(isinstance(node, partly) for node in nodes)
    inner += sum(len(node.ifs) for node in nodes if isinstance(node, ast.comprehension))
    inner += sum(len(node.values) - 1 for node in nodes if isinstance(node, ast.BoolOp))
    return sum(isinstance(node, whole) for node in nodes), inner


def lines(node: Defined) -> int:
    """How many lines it has, but for its docstring."""
    told = ast.get_docstring(node, clean=False) or ""
    return (node.end_lineno or 0) - node.lineno + 1 - len(told.splitlines())


def test_no_function_is_more_than_a_reader_takes_in() -> None:
    beyond = []
    for node in DEFINED:
        if isinstance(node, ast.FunctionDef):
            inside = sum(node.lineno <= line <= (node.end_lineno or 0) for line in TOKENS)
            if lines(node) > 45 or inside > 320 or sum(decisions(node)) > 12:
                beyond.append((node.name, lines(node), inside, decisions(node)))
    assert beyond == []
    in_statements, in_expressions = decisions(TREE)
    assert in_expressions <= 0.9 * in_statements and len(TOKENS) <= MOST_TOKENS, len(TOKENS)


def test_each_function_and_class_says_what_it_is() -> None:
    assert [node.name for node in DEFINED
            if (node.end_lineno or 0) - node.lineno >= 3 and not ast.get_docstring(node)
            and not node.name.startswith("__")] == []


def test_the_map_at_the_top_names_what_there_is() -> None:
    names = {node.name for node in DEFINED}
    told = ast.get_docstring(TREE, clean=False) or ""
    night = re.findall(r"(?m)^    ([A-Z]?\w[\w., ]*?)(?:  .*)?$", told)
    steps = [step.split(".")[-1] for row in night for step in row.split(", ")]
    assert len(steps) > 20 and [step for step in steps if step not in names] == []
