"""The command `mutate`: what changes of the nightly path does no test notice?

The changes are those of cosmic-ray's operators (a comparison, a number, a break, `not` …), and one
of our own that takes a statement away, which cosmic-ray has not. Neither its runner nor mutmut's
serves here: mutmut chooses a mutant by a variable that programs with an environment of their own
do not get, and cosmic-ray starts pytest, and so PostgreSQL and S3, anew for each mutant. Here one
pytest, in a copy of the project, goes through the mutants while its servers run on.
"""
from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from _pytest.runner import runtestprotocol

from environment import EXECUTOR, FRONT, MUTATIONS, PROJECT, fetched
from servers import temporary_folder

# Fetched when they are asked for: no other command needs them. attrs comes with the requirements.
COSMIC_RAY = ("cosmic-ray==8.7.0", "parso==0.8.7")
# The rooms of the nightly path, by their headings.
ROOMS = ("Retention", "The staging volume", "A backup: the dump", "A backup: upload and proof",
         "A backup: as a whole", "The executor")
# The tests that are to notice a change of these functions; the first line that fits counts.
FITTING = (
    (".*roles|beside", r"test_roles\.py::(?!.*crash)"),
    (".*roles.*|beside", r"test_roles\.py::(?!.*crash)"),
    ("by_database|proven|doubtful|superseded|remove|known_backups|prune",
     r"::test_retention|test_retention\.py"),
    ("archive_origin|unlike|beginnings|strangers", r"test_retention\.py::.*(archive|head|forgot)"),
    ("Window|dump_every_row|dump_once|seal|Server|dump",
     (r"test_dump\.py::.*(rows|costs|fails|void|truncated|table|session|stopped|bad|without|restor)"
     r"|::test_(a_backup_restored|stdout|an_objects)")),
    ("compression_held_off|gone_client", r"test_timescale\.py::.*(notices|waits|cannot_hold)"),
    ("require_room|free_bytes", r"test_dump\.py::.*(room|disk|volume)"),
    ("read_patiently|examine_database|newest_backup|free_seconds|compression",
     r"test_dump\.py::.*(old_pg|newer|cannot_get|missing|away)|::.*(clock|somebody_elses|arguments)"),
    ("slices|upload|store|check_stored|abort|part_size|metadata_of|send_",
     (r"test_upload\.py::(?!.*memory)|test_s3\.py::.*forgotten|::.*(limits_of_parts|an_objects|abort"
     r"|looks_like)")),
    ("Executor|Job|read_process|signal_name",
     (r"test_(executor|colonies)\.py|test_odd_moments\.py::.*(process|killed|sigterm|child|kept)"
     r"|::test_(it_registers|a_submitted|unknown|a_queue|an_empty)")),
    ("", (r"test_dump\.py::.*(kill|kept|files|second|told)|test_nightly\.py|::test_stdout"
         r"|test_odd_moments\.py::.*(kept|left|journal|folder|sealed|read_back|damaged)")))
LONGEST = 120  # seconds that one test may take with a mutant
UNSEEN = "NOT NOTICED"


class Mutant(NamedTuple):
    """A change of the module."""

    function: str  # "prune", "Journal.save"
    tests: str  # those that are to notice it
    what: str  # the first line that changes, before and after
    first: int  # the lines that BODY stands for
    last: int
    body: str

    def of(self, source: str) -> str:
        """The module with this change."""
        lines = source.split("\n")
        return "\n".join([*lines[:self.first - 1], self.body, *lines[self.last:]])


# ---- Making them ---------------------------------------------------------------------------------

def functions(source: str) -> dict[str, tuple[int, int]]:
    """The nightly path's functions: the first and last lines of their bodies."""
    headings = [(source[:found.start()].count("\n") + 1, found[1])
                for found in re.finditer(r"(?m)^# ---- (.*?) -+$", source)]
    found = {}
    tree = ast.parse(source)
    for above, node in [("", each) for each in tree.body] + [
            (f"{each.name}.", inner) for each in tree.body if isinstance(each, ast.ClassDef)
            for inner in each.body]:
        if isinstance(node, ast.FunctionDef):
            room = [name for line, name in headings if line < node.lineno][-1]
            if room in ROOMS:
                body = node.body[1:] if ast.get_docstring(node) else node.body
                found[above + node.name] = (body[0].lineno, node.end_lineno or 0)
    return found


def operators() -> tuple[Any, list[Any]]:
    """cosmic-ray's way with trees, and its operators, but for those that want variables' names."""
    for requirement in COSMIC_RAY:
        def unpack(wheel: zipfile.ZipFile, folder: Path) -> Path:
            wheel.extractall(folder / "unpacked")
            return folder / "unpacked"

        sys.path.append(str(fetched(requirement, unpack)))
    provider = importlib.import_module("cosmic_ray.operators.provider").OperatorProvider()
    kinds = map(provider.__getitem__, provider)
    return (importlib.import_module("cosmic_ray.ast"),
            [operator() for operator in kinds if not operator.arguments()])


def without_statements(text: str) -> Iterator[str]:
    """The text with each of its statements taken away, one at a time; not what binds a name."""
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        told = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, (ast.Expr, ast.AugAssign, ast.Raise, ast.Return)) and not told:
            left = lines[node.lineno - 1][:node.col_offset] + "pass"
            yield "\n".join([*lines[:node.lineno - 1], left, *lines[node.end_lineno or 0:]])


def changed(trees: Any, operator: Any, text: str, nodes: list[Any]) -> Iterator[str]:
    """The text, which has these nodes, with each change that an operator makes, one at a time."""
    for place in range(sum(len([*operator.mutation_positions(node)]) for node in nodes)):
        tree, passed = trees.get_ast(text), 0
        for node in trees.ast_nodes(tree):
            here = len([*operator.mutation_positions(node)])
            if place < passed + here:
                among = node.parent.children
                at = next(i for i, each in enumerate(among) if each is node)
                among[at:at + 1] = filter(None, [operator.mutate(node, place - passed)])
                yield tree.get_code()
                break
            passed += here


def mutants(source: str, wanted: Sequence[str], seed: int) -> list[Mutant]:
    """The changes of the functions that are wanted, else of all: at random, first one a line."""
    lines, found = source.split("\n"), []
    trees, kinds = operators()
    for name, (first, last) in functions(source).items():
        if name not in wanted and wanted:
            continue
        tests = next(tests for names, tests in FITTING if re.match(names, name))
        before = lines[first - 1:last]
        text = "\n".join(["def function():", *before])
        texts, nodes = [*without_statements(text)], [*trees.ast_nodes(trees.get_ast(text))]
        for operator in kinds:
            texts += changed(trees, operator, text, nodes)
        for each in texts:
            after = each.split("\n")[1:]
            try:
                ast.parse(each)
            except SyntaxError:
                continue
            differ = [i for i, line in enumerate(before) if after[i:i + 1] != [line]]
            if differ:
                at = differ[0]
                what = f"{first + at}: {before[at].strip()}  ->  {after[at].strip()}"
                found.append(Mutant(name, tests, what, first, last, "\n".join(after)))
    random.Random(seed).shuffle(found)
    before_it, order = Counter[str](), []
    for mutant in found:
        line = mutant.what.partition(":")[0]
        order.append((before_it[line], mutant))
        before_it[line] += 1
    return [mutant for _, mutant in sorted(order, key=lambda each: each[0])]


# ---- Running the tests ---------------------------------------------------------------------------

class Session:
    """What pytest does in the copy: for each mutant those that fit, until one fails."""

    def __init__(self, session: pytest.Session, plan: dict[str, Any]) -> None:
        self.items, self.session = session.items, session
        self.end, self.each = time.monotonic() + plan["minutes"] * 60, plan["each"]
        self.plan = [Mutant(*each) for each in plan["mutants"]]
        self.source = EXECUTOR.read_text()
        self.passes: dict[str, bool] = {}  # of a test: without a mutant
        self.took: dict[str, float] = {}  # seconds
        self.kills = Counter[tuple[str, str]]()  # by function or kind, and test
        self.survivors: list[str] = []

    def write(self, code: str) -> bool:
        """Have the module be CODE; whether it can be loaded."""
        EXECUTOR.write_text(code)
        module = sys.modules.get("backup_executor")
        try:
            if module:
                importlib.reload(module)
        except Exception:
            return False
        return True

    def failed(self, item: pytest.Item) -> bool:
        """Run a test; whether it failed."""
        def too_long(*_: object) -> None:
            raise TimeoutError("with this mutant it takes too long")

        signal.signal(signal.SIGALRM, too_long)
        begun = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, LONGEST, 5)  # again, where something swallows it
        try:
            # What comes next needs the servers: what all of a session share stays.
            reports = runtestprotocol(item, log=False, nextitem=self.session)  # type: ignore[arg-type]
        except TimeoutError:
            return True
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.took[item.nodeid] = time.monotonic() - begun
        return any(report.failed for report in reports)

    def notices(self, item: pytest.Item, code: str) -> bool:
        """Whether a test fails with a mutant, and passes without."""
        if self.passes.get(item.nodeid) is False or not self.failed(item):
            return False
        if item.nodeid not in self.passes:
            self.write(self.source)
            self.passes[item.nodeid] = not self.failed(item)
            self.write(code)
        return self.passes[item.nodeid]

    def fitting(self, mutant: Mutant) -> list[pytest.Item]:
        """Its tests: first what noticed others of its function, then of its kind, then by speed."""
        def rank(item: pytest.Item) -> tuple[int, int, float]:
            test = item.nodeid
            return (-self.kills[mutant.function, test], -self.kills[mutant.tests, test],
                    self.took.get(test, 5))

        return sorted([item for item in self.items if re.search(mutant.tests, item.nodeid)],
                      key=rank)

    def tell(self, mutant: Mutant) -> str:
        """Run tests until one notices a mutant; that, "not noticed", or "" if time is up."""
        code = mutant.of(self.source)
        if not self.write(code):
            return "it cannot be loaded"
        end, items = time.monotonic() + self.each, self.fitting(mutant)
        for number, item in enumerate(items):
            if time.monotonic() > self.end:
                return ""
            if time.monotonic() > end:
                return f"{UNSEEN} by {number} of {len(items)} tests"
            if self.notices(item, code):
                self.kills.update([(mutant.function, item.nodeid), (mutant.tests, item.nodeid)])
                return item.nodeid
        return f"{UNSEEN} by {len(items)} tests"

    def run(self) -> None:
        """Go through the plan, while there is time, and print what comes of it."""
        seen = 0
        for mutant in self.plan:
            said = self.tell(mutant)
            if not said:
                break
            line = f"{mutant.function} {mutant.what}  ({said})"
            print(line, flush=True)
            if said.startswith(UNSEEN):
                self.survivors.append(line)
            else:
                seen += 1
        print(f"\n{seen} of {seen + len(self.survivors)} mutants were noticed; the others:\n",
              *self.survivors, sep="\n", flush=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """As a plugin, in the copy: instead of the tests once, the mutants."""
    if MUTATIONS not in os.environ or session.config.option.collectonly:
        return None
    Session(session, json.loads(Path(os.environ[MUTATIONS]).read_text())).run()
    return True


# ---- The command ---------------------------------------------------------------------------------

def mutations(arguments: list[str]) -> int:
    """Change the nightly path in small ways, and print which changes no test notices."""
    parser = argparse.ArgumentParser(prog=f"{FRONT.name} mutate", description=mutations.__doc__)
    parser.add_argument("functions", nargs="*", metavar="FUNCTION",
                        help="prune or Journal.save, for instance; all, if none is named")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--each", type=float, default=90, metavar="SECONDS",
                        help="after which no further test is tried with a mutant")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which they are tried")
    options = parser.parse_args(arguments)
    source = EXECUTOR.read_text()
    unknown = set(options.functions) - set(functions(source))
    if unknown:
        parser.error(f"not on the nightly path: {', '.join(sorted(unknown))}")
    made = mutants(source, options.functions, options.seed)
    with temporary_folder() as folder:
        copy = folder / "project"
        shutil.copytree(PROJECT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__"))
        plan = folder / "plan.json"
        plan.write_text(json.dumps({
            "minutes": options.minutes, "each": options.each, "mutants": made}))
        tests = [f".ci/{name}" for name in ("test_retention.py", "test_nightly.py", "test_dump.py",
                                            "test_odd_moments.py", "test_upload.py", "test_s3.py",
                                            "test_executor.py", "test_colonies.py",
                                            "test_timescale.py")]
        return subprocess.run(
            [sys.executable, "-B", "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider",
             "-p", "no:warnings", "-p", "mutations", FRONT.name, *tests], cwd=copy, check=False,
            env={**os.environ, MUTATIONS: str(plan), "PYTHONPATH": str(copy / ".ci")}).returncode
