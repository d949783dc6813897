"""The command `mutate`: what changes of the nightly path does no test notice?

The changes are those of cosmic-ray's operators (a comparison, a number, a break, `not` …), and one
of our own that takes a statement away, which cosmic-ray has not. Neither its runner nor mutmut's
serves here: mutmut chooses a mutant by a variable that programs with an environment of their own
do not get, and cosmic-ray starts pytest, and so PostgreSQL and S3, anew for each mutant. Here one
pytest, in a copy of the project, goes through the mutants while its servers run on. First it learns
which lines of the module each test runs, in whatever program, and keeps that in the cache: a mutant
is tried by the tests that run its line.
"""
from __future__ import annotations

import argparse
import ast
import hashlib
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

from environment import EXECUTOR, FRONT, MUTATIONS, PROJECT, cache_folder, fetched
from servers import temporary_folder

# Fetched when they are asked for: no other command needs them. attrs comes with the requirements.
COSMIC_RAY = ("cosmic-ray==8.7.0", "parso==0.8.7")
# Of its changes of an operator those to the nearest one: the others mostly end in a TypeError.
NEAREST = {
    "Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "BitOr_BitAnd", "BitAnd_BitOr",
    "Eq_NotEq", "NotEq_Eq", "Lt_LtE", "LtE_Lt", "Gt_GtE", "GtE_Gt", "Is_IsNot", "IsNot_Is",
    "Delete_Not", "Delete_USub"}
# Of numbers small ones, and an HTTP status: one more or less of a time limit shows nowhere.
TELLING = "[0-4]|[2-5][0-9]{2}"
FRONTS = r"^test_backup_executor\.py::(?!.*(a_restored|renames|report|help|list_shows|check_))"
STAGED = r"test_(going_on|nightly|odd_moments)\.py"
STORED = r"test_upload\.py::(?!.*memory)|test_(proof|bucket)\.py"
DUMPED = r"|test_dump\.py|test_timescale\.py::.*(notices|waits|cannot_hold)"
ROLES = r"test_roles\.py::(?!.*(crash|random))"
JOINED = (rf"{FRONTS}|test_(executor|colonies|citizen)\.py"
          r"|test_odd_moments\.py::.*(process|close|log|kill|approv|lost|answers|child|colonies|waits)|test_hostile\.py::.*process"
          r"|test_verify\.py::.*(waits_beside|arguments)")
# The rooms of the nightly path, by their headings, and the tests that may notice their changes.
ROOMS = {
    "S3": rf"test_(s3|reaching|retention|cost)\.py|{STORED}",
    "Retention": rf"{FRONTS}|test_(keeping|retention|going_on|bucket)\.py|{ROLES}",
    "The staging volume": STAGED + DUMPED,
    "A backup: the dump": rf"{FRONTS}|test_(going_on|nightly)\.py|test_hostile\.py::.*server"
                          + DUMPED,
    "A backup: upload and proof": rf"test_s3\.py|{STORED}|{STAGED}|{ROLES}",
    "A backup: as a whole": rf"{FRONTS}|{STAGED}{DUMPED}",
    "Colonies": rf"{JOINED}|test_signatures\.py",
    "The executor": JOINED,
    "Crons": r"test_crons\.py",
    "Being told": r"test_told\.py",
    "Errors and waiting": rf"{JOINED}|test_(said|machine|rows)\.py",
    "Log and progress": r"test_(shown|said|executor|told)\.py|test_machine\.py::.*(log|saving)",
    "Settings": r"test_(commands|said|crons|told|reaching)\.py|test_(age|check)\.py::.*(set|recip)",
    "Programs": rf"{FRONTS}|test_(dump|said|commands|truth|rows|doors)\.py"}
UNSEEN = "NOT NOTICED"
# What is put into the copy's module, into a line that is there: each that runs notes its number.
TRACER = """
import os, sys, threading
def trace(frame, event, argument, seen=set()):
    if frame.f_code.co_filename == {file!r}:
        if event == "line" and frame.f_lineno not in seen:
            seen.add(frame.f_lineno)
            try:
                fd = os.open({notes!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                os.write(fd, b"%d " % frame.f_lineno)
                os.close(fd)
            except OSError:
                pass
        return trace
sys.settrace(trace)
threading.settrace(trace)
"""
FUTURE = "from __future__ import annotations\n"


class Mutant(NamedTuple):
    """A change of the module."""

    function: str  # "prune", "Journal.save"
    tests: str  # a pattern of those that may notice it
    line: int  # the first one that changes
    what: str  # that, before and after
    first: int  # the lines that BODY stands for
    last: int
    body: str

    def of(self, source: str) -> str:
        """The module with this change."""
        lines = source.split("\n")
        return "\n".join([*lines[:self.first - 1], self.body, *lines[self.last:]])


# ---- Making them ---------------------------------------------------------------------------------

def functions(source: str) -> dict[str, tuple[int, int, str]]:
    """The nightly path's functions: the first and last lines of their bodies, and their tests."""
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
                found[above + node.name] = (body[0].lineno, node.end_lineno or 0, ROOMS[room])
    return found


def operators() -> tuple[Any, list[Any]]:
    """cosmic-ray's way with trees, and of its operators those that serve here.

    Some want the names of variables.
    """
    for requirement in COSMIC_RAY:
        def unpack(wheel: zipfile.ZipFile, folder: Path) -> Path:
            wheel.extractall(folder / "unpacked")
            return folder / "unpacked"

        sys.path.append(str(fetched(requirement, unpack)))
    provider = importlib.import_module("cosmic_ray.operators.provider").OperatorProvider()
    kinds = [provider[name] for name in provider
             if "Operator_" not in name or name.partition("_")[2] in NEAREST]
    return (importlib.import_module("cosmic_ray.ast"),
            [operator() for operator in kinds if not operator.arguments()])


def without_statements(text: str) -> Iterator[str]:
    """The text with each of its statements taken away, one at a time; not what binds a name."""
    lines, [function] = text.split("\n"), ast.parse(text).body
    assert isinstance(function, ast.FunctionDef)
    for node in ast.walk(function):
        told = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        # `return False` at the end is as good as nothing: None is as false.
        same = isinstance(node, ast.Return) and node is function.body[-1] and (
            node.value is None or getattr(node.value, "value", True) is False)
        kinds = (ast.Expr, ast.AugAssign, ast.Raise, ast.Return)
        if isinstance(node, kinds) and not told and not same:
            left = lines[node.lineno - 1][:node.col_offset] + "pass"
            yield "\n".join([*lines[:node.lineno - 1], left, *lines[node.end_lineno or 0:]])


def changed(trees: Any, operator: Any, text: str, nodes: list[Any]) -> Iterator[str]:
    """The text, which has these nodes, with each change that an operator makes, one at a time."""
    for place in range(sum(len([*operator.mutation_positions(node)]) for node in nodes)):
        tree, passed = trees.get_ast(text), 0
        for node in trees.ast_nodes(tree):
            here = len([*operator.mutation_positions(node)])
            if place < passed + here:
                if node.type == "number" and not re.fullmatch(TELLING, node.value):
                    break
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
    for name, (first, last, tests) in functions(source).items():
        if name not in wanted and wanted:
            continue
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
                found.append(Mutant(name, tests, first + at, what, first, last, "\n".join(after)))
    random.Random(seed).shuffle(found)
    before_it, order = Counter[int](), []
    for mutant in found:
        order.append((before_it[mutant.line], mutant))
        before_it[mutant.line] += 1
    return [mutant for _, mutant in sorted(order, key=lambda each: each[0])]


# ---- Running the tests ---------------------------------------------------------------------------

class Learnt(NamedTuple):
    """What is known of a test."""

    lines: list[int]  # of the module, that run in it
    seconds: float
    passes: bool  # without a mutant


def renew(now: dict[str, Any]) -> None:
    """Give the tests what the module is NOW, where they have something of it by name."""
    beside = str(Path(__file__).parent)
    for room in [each for each in [*sys.modules.values()]
                 if (getattr(each, "__file__", None) or "").startswith(beside)]:
        for name, was in [*vars(room).items()]:
            if getattr(was, "__module__", "") == "backup_executor" and name in now:
                setattr(room, name, now[name])


class Session:
    """What pytest does in the copy: for each mutant those that fit, until one fails."""

    def __init__(self, session: pytest.Session, plan: dict[str, Any]) -> None:
        self.items, self.session = session.items, session
        self.minutes, self.each, self.end = plan["minutes"], plan["each"], 0.0
        self.plan = [Mutant(*each) for each in plan["mutants"]]
        self.source = EXECUTOR.read_text()
        self.cache = Path(plan["cache"])
        self.learnt: dict[str, Learnt] = {}
        self.kills = Counter[tuple[str, str]]()  # by function or pattern, and test
        self.survivors: list[str] = []

    def write(self, code: str) -> bool:
        """Have the module be CODE; whether it can be loaded."""
        EXECUTOR.write_text(code)
        module = sys.modules.get("backup_executor")
        try:
            if module:
                importlib.reload(module)
                renew(vars(module))
        except Exception:
            return False
        return True

    def failed(self, item: pytest.Item, longest: float) -> bool:
        """Run a test, for so many seconds at most; whether it failed."""
        def too_long(*_: object) -> None:
            raise TimeoutError("with this mutant it takes too long")

        signal.signal(signal.SIGALRM, too_long)
        signal.setitimer(signal.ITIMER_REAL, longest, 5)  # again, where something swallows it
        try:
            # What comes next needs the servers: what all of a session share stays.
            reports = runtestprotocol(item, log=False, nextitem=self.session)  # type: ignore[arg-type]
        except TimeoutError:
            return True
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return any(report.failed for report in reports)

    def learn(self, tests: set[str]) -> None:
        """Find out which lines of the module run in each test that any of these patterns has."""
        if self.cache.exists():
            known = json.loads(self.cache.read_text())
            self.learnt = {test: Learnt(*facts) for test, facts in known.items()}
        with temporary_folder() as folder:
            folder.chmod(0o777)
            notes = folder / "lines"
            tracer = TRACER.format(file=str(EXECUTOR), notes=str(notes))
            traced = self.source.replace(FUTURE, f"{FUTURE[:-1]}; exec({tracer!r}, {{}})\n", 1)
            for item in self.items:
                wanted = any(re.search(pattern, item.nodeid) for pattern in tests)
                if not wanted or item.nodeid in self.learnt:
                    continue
                notes.unlink(missing_ok=True)
                self.write(traced)
                begun = time.monotonic()
                passes = not self.failed(item, 300)
                seconds = time.monotonic() - begun
                sys.settrace(None)
                self.write(self.source)
                lines = {*map(int, notes.read_text().split())} if notes.exists() else set[int]()
                passes = passes or not self.failed(item, 300)  # it may be too slow with that
                self.learnt[item.nodeid] = Learnt(sorted(lines), seconds, passes)
                self.cache.write_text(json.dumps(self.learnt))

    def fitting(self, mutant: Mutant) -> list[pytest.Item]:
        """Its tests: first what noticed others of its function, then of its kind, then by speed."""
        def rank(item: pytest.Item) -> tuple[int, int, float]:
            test = item.nodeid
            return (-self.kills[mutant.function, test], -self.kills[mutant.tests, test],
                    self.learnt[test].seconds)

        known = [item for item in self.items if re.search(mutant.tests, item.nodeid)
                 and self.learnt[item.nodeid].passes]
        runs = [item for item in known if mutant.line in self.learnt[item.nodeid].lines]
        whole = {*range(mutant.first, mutant.last + 1)}  # not each line of an expression is noted
        return sorted(runs or [item for item in known
                               if whole.intersection(self.learnt[item.nodeid].lines)], key=rank)

    def tell(self, mutant: Mutant) -> str:
        """Run tests until one notices a mutant; that, "not noticed", or "" if time is up."""
        if not self.write(mutant.of(self.source)):
            return "it cannot be loaded"
        end, items = time.monotonic() + self.each, self.fitting(mutant)
        for number, item in enumerate(items):
            if time.monotonic() > self.end:
                return ""
            if time.monotonic() > end:
                return f"{UNSEEN} by {number} of {len(items)} tests"
            begun, longest = time.monotonic(), 15 + 3 * self.learnt[item.nodeid].seconds
            if self.failed(item, longest):
                if time.monotonic() < begun + longest:  # else others may tell sooner
                    self.kills.update([(mutant.function, item.nodeid), (mutant.tests, item.nodeid)])
                return item.nodeid
        return f"{UNSEEN} by {len(items)} tests"

    def run(self) -> None:
        """Go through the plan, while there is time, and print what comes of it."""
        seen = 0
        self.learn({mutant.tests for mutant in self.plan})
        self.end = time.monotonic() + self.minutes * 60
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


def state() -> str:
    """The state of module and tests, as a name."""
    whole = hashlib.sha256()
    rooms = sorted(Path(__file__).parent.glob("*.py"))
    for file in (EXECUTOR, FRONT, *rooms):
        if file != Path(__file__):
            whole.update(file.read_bytes())
    return whole.hexdigest()[:16]


# ---- The command ---------------------------------------------------------------------------------

def mutations(arguments: list[str]) -> int:
    """Change the nightly path in small ways, and print which changes no test notices."""
    parser = argparse.ArgumentParser(prog=f"{FRONT.name} mutate", description=mutations.__doc__)
    parser.add_argument("functions", nargs="*", metavar="FUNCTION",
                        help="prune or Journal.save, for instance; all, if none is named")
    parser.add_argument("--minutes", type=float, default=10,
                        help="after it is known which test runs what: once, for minutes")
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
            "minutes": options.minutes, "each": options.each, "mutants": made,
            "cache": str(cache_folder() / f"lines-{state()}.json")}))
        return subprocess.run(
            [sys.executable, "-B", "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider",
             "-p", "no:warnings", "-p", "mutations", FRONT.name, ".ci"], cwd=copy, check=False,
            env={**os.environ, MUTATIONS: str(plan), "PYTHONPATH": str(copy / ".ci")}).returncode
