"""The Colonies stand-in: a server of either generation, and a client of it."""
from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

import coincurve

from listener import StandinHTTP
from messages import FIELDS, ONLY_2023, ONLY_2026, WORKFLOW, ZONE, decode, next_run, rfc3339
from servers import PATIENCE, Server, free_ports

WAITING, RUNNING, SUCCESS, FAILED, CANCELLED = range(5)
PENDING, APPROVED, REJECTED, UNREGISTERED = range(4)
NEVER = "0001-01-01T00:00:00Z"

# The demo keys that ColonyOS publishes.
COLONY_NAME = "dev"
OWNER_KEY = "ba949fa134981372d6da62b6a56f336ab4d843b22c02a4257dcf7d0d73097514"
USER_KEY = "ddf7f7791208083b6a9ed975a72684f6406a269cfa36f1b1c32045c0a71fff05"


def identity(key: str) -> str:
    """The identity of a private key."""
    return identity_of(coincurve.PrivateKey.from_hex(key).public_key)


def identity_of(public: coincurve.PublicKey) -> str:
    return hashlib.sha3_256(public.format(compressed=False).hex().encode()).hexdigest()


def sign(key: str, text: str) -> str:
    """Signature of a text, by an independent library (libsecp256k1)."""
    digest = hashlib.sha3_256(text.encode()).digest()
    return coincurve.PrivateKey.from_hex(key).sign_recoverable(digest, hasher=None).hex()


def recover(signature: str, text: str) -> str:
    """The identity that signed a text; ValueError if it is no signature."""
    digest = hashlib.sha3_256(text.encode()).digest()
    raw = bytes.fromhex(signature)
    if len(raw) != 65:
        raise ValueError("invalid signature length")
    try:
        return identity_of(coincurve.PublicKey.from_signature_and_message(raw, digest, hasher=None))
    except Exception as error:  # the library raises bare ones
        raise ValueError(f"recovery failed: {error}") from None


class Refused(Exception):
    """An error reply: HTTP status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class Standin(Server):
    """A Colonies server's executor side, in memory, as strict as the real ones of 2023 and 2026.

    .executors (by name), .functions, .processes (by id, as submitted), .crons (by id), .logs and
    .calls (type, identity, HTTP status; status 0 says that a long poll begins to wait) are its
    state: read them under .lock. It holds a long poll for .longest seconds at most.
    """

    def __init__(self, port: int = 0, generation: int = 2026, stale: float = 600.0,
                 reregister: bool = True, https: tuple[str, str] | None = None) -> None:
        self.port, self.generation, self.stale = port or free_ports(1)[0], generation, stale
        self.reregister, self.https = reregister, https
        self.owner, self.members = identity(OWNER_KEY), {identity(USER_KEY): "operator"}
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.executors: dict[str, dict[str, Any]] = {}
        self.functions: list[dict[str, Any]] = []
        self.processes: dict[str, dict[str, Any]] = {}
        self.graphs: dict[str, list[dict[str, Any]]] = {}  # the processes of a workflow, by its id
        self.foreign: set[str] = set()  # ids of processes that another colony has
        self.paused = False
        self.crons: dict[str, dict[str, Any]] = {}
        self.logs: list[dict[str, Any]] = []
        self.calls: list[tuple[str, str, int]] = []
        self.heard: dict[str, float] = {}      # executor's name -> when it last asked for work
        self.closed: dict[str, tuple[str, int]] = {}  # process id -> by whom, after how many calls
        self.deadlines: dict[str, float] = {}  # process id -> when it is taken back or failed
        self.longest = float("inf")
        self.stopping = threading.Event()
        self.server: StandinHTTP | None = None

    # -- coming and going

    def start(self) -> Standin:
        self.stopping = threading.Event()
        self.server = StandinHTTP(self)
        with self.lock:  # the time that it was away counts, as it does for a real one
            self.changed.notify_all()
        for target in (functools.partial(self.server.serve_forever, 0.05), self._watch):
            threading.Thread(target=target, daemon=True).start()
        return self

    def stop(self) -> None:
        """Close every connection, long polls too. The state stays: start() brings it back."""
        if self.server:
            server, self.server = self.server, None
            self.stopping.set()
            with self.lock:
                self.changed.notify_all()
            server.shutdown()
            server.server_close()

    kill = stop

    @property
    def running(self) -> bool:
        return self.server is not None

    def _watch(self) -> None:
        """What a server does by itself: deadlines, and dropping executors that fell silent."""
        stopping = self.stopping
        while not stopping.wait(0.2):
            with self.lock:
                now = time.monotonic()
                for identifier in [key for key, due in self.deadlines.items() if due <= now]:
                    self._overdue(self.processes[identifier])
                for name, executor in self.executors.items():
                    if (self.generation == 2026 and executor["state"] != UNREGISTERED
                            and now - self.heard[name] > self.stale):
                        self._drop(executor)

    def _overdue(self, process: dict[str, Any]) -> None:
        spec = process["spec"]
        if process["state"] == RUNNING and not 0 <= spec["maxretries"] <= process["retries"]:
            process["retries"] += 1
            self._release(process)
        else:
            kind = "waiting" if process["state"] == WAITING else "execution"
            self._fail(process, [f"Maximum {kind} time limit exceeded"])

    def _release(self, process: dict[str, Any]) -> None:
        """A running process waits again."""
        process.update(state=WAITING, isassigned=False, assignedexecutorid="")
        self._limit(process, process["spec"]["maxwaittime"], "waitdeadline")
        self.changed.notify_all()

    def _limit(self, process: dict[str, Any], seconds: int, field: str) -> None:
        self.deadlines.pop(process["processid"], None)
        if seconds > 0:
            self.deadlines[process["processid"]] = time.monotonic() + seconds
            process[field] = rfc3339(time.time() + seconds)

    def _end(self, process: dict[str, Any], state: int, **result: Any) -> None:
        self.deadlines.pop(process["processid"], None)
        process.update(state=state, endtime=rfc3339(), **result)
        self.changed.notify_all()

    def _fail(self, process: dict[str, Any], errors: list[str]) -> None:
        """A process fails; with one that others depend on all of its workflow does, wordlessly."""
        self._end(process, FAILED, errors=errors)
        if process["children"]:
            for other in self.graphs[process["processgraphid"]]:
                other["state"] = FAILED

    def _drop(self, executor: dict[str, Any]) -> None:
        """An executor leaves: its running processes wait again, its functions are gone."""
        executor["state"] = UNREGISTERED
        for process in self.processes.values():
            if (process["state"], process["assignedexecutorid"]) == (
                    RUNNING, executor["executorid"]):
                process["starttime"] = NEVER
                self._release(process)
        self.functions[:] = [fun for fun in self.functions
                             if fun["executorname"] != executor["executorname"]]

    # -- messages

    def answer(self, body: bytes, gone: Callable[[], bool]) -> tuple[int, str, Any]:
        """HTTP status, payload type and payload of the reply to a request."""
        kind, caller = "", ""
        try:
            try:
                envelope = decode(json.loads(body), {
                    "payloadtype": str, "payload": str, "signature": str})
            except (ValueError, TypeError) as error:
                raise Refused(400, f"invalid JSON: {error}") from None
            kind = envelope["payloadtype"]
            try:
                caller = recover(envelope["signature"], envelope["payload"])
            except ValueError as error:
                raise Refused(403, str(error)) from None
            if kind not in FIELDS or kind in (
                    ONLY_2023 if self.generation == 2026 else ONLY_2026):
                raise Refused(403, f"invalid rpcMsg.PayloadType: {kind}")
            try:
                message = json.loads(base64.b64decode(envelope["payload"], validate=True))
                fields = decode(message, FIELDS[kind] | {"msgtype": str})
            except (ValueError, TypeError) as error:
                raise Refused(400, f"Failed to handle {kind}, invalid JSON: {error}") from None
            if fields.pop("msgtype") != kind:
                raise Refused(400, "msg.MsgType does not match payloadType")
            with self.lock:
                extra = {"gone": gone} if kind == "assignprocessmsg" else {}
                handle = getattr(self, "on_" + kind.removesuffix("msg"))
                payload = handle(caller, fields, **extra)
                self._called(kind, caller, 200)
                return 200, kind, payload if isinstance(payload, str) else json.dumps(payload)
        except Refused as error:
            with self.lock:
                self._called(kind, caller, error.status)
            return error.status, "error", json.dumps(
                {"status": error.status, "message": error.message})

    def _called(self, kind: str, caller: str, status: int) -> bool:
        self.calls.append((kind, caller, status))
        self.changed.notify_all()
        return True

    def colony(self) -> Colony:
        return Colony("127.0.0.1", self.port, COLONY_NAME, self.owner, OWNER_KEY, USER_KEY,
                      self.generation, self)

    def wait_call(self, kind: str, status: int = 200, count: int = 1,
                  timeout: float = PATIENCE) -> None:
        """Wait until COUNT messages of a type have been answered with a status, since the start."""
        with self.lock:
            if not self.changed.wait_for(lambda: count <= sum(
                    (call[0], call[2]) == (kind, status) for call in self.calls), timeout):
                raise AssertionError(f"no {count} {kind} with {status} among {self.calls[-50:]}")

    def wait_state(self, identifier: str, states: tuple[int, ...], timeout: float) -> None:
        """Wait until a process is in one of the states, or for so many seconds."""
        with self.lock:
            process = self.processes[identifier]
            self.changed.wait_for(lambda: process["state"] in states, max(timeout, 0))
            caller, calls = self.closed.get(identifier, ("", 0))
            # Who closed it has forgotten it by its next message; it may be gone, and send none.
            self.changed.wait_for(lambda: not caller or caller in [
                call[1] for call in self.calls[calls:]], 10)

    def _colony(self, fields: dict[str, Any]) -> None:
        known = (fields["colonyname"] == COLONY_NAME if self.generation == 2026
                 else fields["colonyid"] == self.owner)
        if not known:
            raise Refused(403, f"Colony with name <{fields['colonyname']}> does not exists")

    def _owner(self, caller: str, fields: dict[str, Any]) -> None:
        self._colony(fields)
        if caller != self.owner:
            raise Refused(403, "Access denied, not colony owner")

    def _member(self, caller: str, fields: dict[str, Any] | None = None) -> str:
        """The caller's name; refused unless it is a user or an approved executor."""
        if fields is not None:
            self._colony(fields)
        if caller in self.members:
            return self.members[caller]
        for executor in self.executors.values():
            if (executor["executorid"], executor["state"]) == (caller, APPROVED):
                return executor["executorname"]
        raise Refused(403, f"Access denied, not a member of Colony with name <{COLONY_NAME}>")

    def _executor(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The executor that a message names (2026) or numbers (2023)."""
        field = "executorname" if self.generation == 2026 else "executorid"
        for executor in self.executors.values():
            if executor[field] == fields[field]:
                return executor
        raise Refused(500, "executor is nil")

    def _process(self, caller: str, identifier: str, unknown: int = 500) -> dict[str, Any]:
        if identifier not in self.processes:
            raise Refused(unknown, "process is nil")
        if identifier in self.foreign:
            raise Refused(403, "Access denied, not a member of Colony with name <another>")
        self._member(caller)
        return self.processes[identifier]

    def _mine(self, caller: str, identifier: str) -> dict[str, Any]:
        process = self._process(caller, identifier)
        if process["assignedexecutorid"] != caller:
            raise Refused(403, "not allowed, the process is not assigned to this executor")
        return process

    # -- executors and functions

    def on_addexecutor(self, caller: str, fields: dict[str, Any]) -> Any:
        new = fields["executor"]
        self._owner(caller, new)
        name = new["executorname"]
        if name in self.executors:
            if self.generation == 2023:
                raise Refused(400, "Executor name must be unique")
            if not self.reregister:
                raise Refused(400, f"Executor with name <{name}> in Colony <dev> already exists")
            self._drop(self.executors[name])
        self.executors[name] = {**new, "state": PENDING, "requirefuncreg": False,
                                "commissiontime": rfc3339(), "lastheardfromtime": NEVER}
        self.heard[name] = time.monotonic()
        return self.executors[name]

    def on_approveexecutor(self, caller: str, fields: dict[str, Any]) -> Any:
        executor = self._executor(fields)
        self._owner(caller, executor)
        if executor["state"] == UNREGISTERED:  # the real one, too, lets it back in
            self.heard[executor["executorname"]] = time.monotonic()
        executor["state"] = APPROVED
        return {}

    def on_removeexecutor(self, caller: str, fields: dict[str, Any]) -> Any:
        executor = self._executor(fields)
        self._owner(caller, executor)
        self._drop(executor)
        if self.generation == 2023:  # the newer keeps them, unregistered
            del self.executors[executor["executorname"]]
        return {}

    on_deleteexecutor = on_removeexecutor

    def on_rejectexecutor(self, caller: str, fields: dict[str, Any]) -> Any:
        executor = self._executor(fields)
        self._owner(caller, executor)
        executor["state"] = REJECTED
        return {}

    def on_getexecutors(self, caller: str, fields: dict[str, Any]) -> Any:
        if caller == self.owner and self.generation == 2023:
            self._colony(fields)
        else:  # to the newer one its owner is no member
            self._member(caller, fields)
        return list(self.executors.values()) or None

    def on_updateexecutor(self, caller: str, fields: dict[str, Any]) -> Any:
        self._colony(fields)
        executor = self.executors.get(fields["executorname"])
        if executor is None or executor["state"] == UNREGISTERED:
            raise Refused(400, f"Executor with name <{fields['executorname']}> does not exist")
        if executor["executorid"] != caller:
            self._member(caller)
            raise Refused(400, "Only an executor can update its own capabilities")
        executor["capabilities"] = fields["capabilities"]
        return {}

    def on_removeuser(self, caller: str, fields: dict[str, Any]) -> Any:
        if fields["colonyname"] != COLONY_NAME:
            raise Refused(400, f"Colony with name <{fields['colonyname']}> does not exists")
        self._owner(caller, fields)
        raise Refused(400, f"User with name <{fields['name']}> not found")

    def on_addfunction(self, caller: str, fields: dict[str, Any]) -> Any:
        function = fields["fun"]
        self._member(caller, function)
        executor = self._executor(function)
        if executor["executorid"] != caller:
            raise Refused(403, "Not allowed to add a function to another executor")
        function.update(functionid=secrets.token_hex(32), executorname=executor["executorname"])
        if self.generation == 2023 and any(
                (other["executorname"], other["funcname"])
                == (function["executorname"], function["funcname"]) for other in self.functions):
            raise Refused(403, "Function already exists")
        self.functions.append(function)
        return function

    def on_getfunctions(self, caller: str, fields: dict[str, Any]) -> Any:
        self._member(caller, fields if self.generation == 2026 else None)
        if self.generation == 2023 and bool(fields["executorid"]) == bool(fields["colonyid"]):
            raise Refused(400, "Both executor id and colony id cannot be specified")
        field = "executorname" if self.generation == 2026 else "executorid"
        return [function for function in self.functions
                if fields[field] in ("", function[field])] or None

    # -- processes

    def on_submitfuncspec(self, caller: str, fields: dict[str, Any]) -> Any:
        name = self._member(caller, fields["spec"]["conditions"])
        return self._submit(caller, name, fields["spec"])

    def on_submitworkflowspec(self, caller: str, fields: dict[str, Any]) -> Any:
        name = self._member(caller, fields["spec"])
        try:
            graph = self._submit_all(caller, name, fields["spec"]["functionspecs"], [])
        except ValueError as error:
            raise Refused(500, str(error)) from None
        return {"processgraphid": graph, "colonyname": COLONY_NAME, "state": WAITING,
                "processids": [process["processid"] for process in self.graphs[graph]]}

    def _submit_all(self, caller: str, name: str, specs: list[dict[str, Any]],
                    before: list[Any]) -> str:
        """Submit the processes of a workflow, the first ones with what came BEFORE as `in`."""
        nodes = self._checked(specs)
        graph = secrets.token_hex(32)
        made = {}
        for spec in nodes.values():
            spec["maxexectime"] = spec["maxexectime"] or -1
            spec["conditions"] |= {"colonyname": COLONY_NAME, "colonyid": self.owner}
            depends = bool(spec["conditions"]["dependencies"])
            made[spec["nodename"]] = self._submit(
                caller, name, spec, processgraphid=graph, waitforparents=depends,
                **{"in": [] if depends else before})
        for child in made.values():
            for node in child["spec"]["conditions"]["dependencies"]:
                child["parents"].append(made[node]["processid"])
                made[node]["children"].append(child["processid"])
        self.graphs[graph] = [*made.values()]
        return graph

    @staticmethod
    def _checked(specs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The nodes of a workflow by their names; ValueError if they are none."""
        nodes = {spec["nodename"]: spec for spec in specs}
        if not all(nodes):
            raise ValueError("Nodename is missing, check function spec for errors")
        if len(nodes) < len(specs):
            raise ValueError("Duplicate nodename")
        if any(node not in nodes for spec in specs for node in spec["conditions"]["dependencies"]):
            raise ValueError("Failed to submit workflow, invalid dependencies, are you depending on"
                             " a nodename that does not exits?")
        return nodes

    def _submit(self, caller: str, name: str, spec: dict[str, Any], **more: Any) -> Any:
        process: dict[str, Any] = {
            "processid": secrets.token_hex(32), "initiatorid": caller, "initiatorname": name,
            "assignedexecutorid": "", "isassigned": False, "state": WAITING,
            "prioritytime": time.time_ns(), "submissiontime": rfc3339(), "starttime": NEVER,
            "endtime": NEVER, "waitdeadline": NEVER, "execdeadline": NEVER, "retries": 0,
            "attributes": None, "spec": spec, "waitforparents": False, "parents": [],
            "children": [], "processgraphid": "", "in": [], "out": [], "errors": [], **more}
        if self.generation == 2023:
            process["spec"] = {key: value for key, value in spec.items()
                               if key not in ("kwargs", "label")}
        self.processes[process["processid"]] = process
        self._limit(process, spec["maxwaittime"], "waitdeadline")
        self.changed.notify_all()
        return process

    def on_assignprocess(self, caller: str, fields: dict[str, Any],
                         gone: Callable[[], bool]) -> Any:
        self._member(caller, fields)
        if fields["timeout"] == 0:
            raise Refused(400, "Invalid timeout value, timeout cannot be zero")
        executor = next((executor for executor in self.executors.values() if caller
                         == executor["executorid"] and executor["state"] == APPROVED), None)
        if executor is None:
            raise Refused(500, "Failed to assign process, executor not found")
        cpu = 1
        if fields["availablecpu"] and self.generation == 2026:
            if not re.fullmatch(r"-?\d+m", fields["availablecpu"]):
                raise Refused(400, f"invalid CPU: {fields['availablecpu']!r}")
            cpu = int(fields["availablecpu"][:-1])
        self.heard[executor["executorname"]] = time.monotonic()
        executor["lastheardfromtime"] = rfc3339()
        which = "executorname" if self.generation == 2026 else "executorid"
        stopping = self.stopping
        deadline = time.monotonic() + max(min(fields["timeout"], self.longest), 0)
        waiting = False
        while True:
            for process in [] if self.paused else self.processes.values():
                conditions = process["spec"]["conditions"]
                if (process["state"] == WAITING and cpu >= 0 and executor["state"] == APPROVED
                        and not process["waitforparents"]
                        and conditions["executortype"] == executor["executortype"]
                        and (executor[which] in conditions[f"{which}s"]
                             or not conditions[f"{which}s"])):
                    if gone():  # a poll that was given up takes no work
                        raise ConnectionAbortedError
                    process.update(state=RUNNING, isassigned=True, assignedexecutorid=caller,
                                   starttime=rfc3339())
                    if process["parents"]:
                        process["in"] = [text for parent in process["parents"]
                                         for text in self.processes[parent]["out"]]
                    self._limit(process, process["spec"]["maxexectime"], "execdeadline")
                    return json.dumps(process)
            left = deadline - time.monotonic()
            if left <= 0 and self.paused:
                raise Refused(408 if fields["timeout"] > 0 else 503,
                              "Assignment timeout: colony assignments are paused")
            if left <= 0:
                raise Refused(404, "No process available for assignment")
            if not waiting:
                waiting = self._called("assignprocessmsg", caller, 0)
            self.changed.wait(left)
            if stopping.is_set():
                raise ConnectionAbortedError

    def on_pauseassignments(self, caller: str, fields: dict[str, Any]) -> Any:
        return self._pause(caller, fields, True)

    def on_resumeassignments(self, caller: str, fields: dict[str, Any]) -> Any:
        return self._pause(caller, fields, False)

    def _pause(self, caller: str, fields: dict[str, Any], paused: bool) -> Any:
        self._owner(caller, fields)
        self.paused = paused
        self.changed.notify_all()
        return {}

    def on_getprocess(self, caller: str, fields: dict[str, Any]) -> Any:
        return self._process(caller, fields["processid"], unknown=404)

    def on_getprocesses(self, caller: str, fields: dict[str, Any]) -> Any:
        self._member(caller, fields)
        if fields["count"] > 100:
            raise Refused(400, "Count is larger than MaxCount limit <100>")
        if not WAITING <= fields["state"] <= (CANCELLED if self.generation == 2026 else FAILED):
            raise Refused(400, "Failed to get processes, invalid msg.State")
        found = [process for process in self.processes.values()
                 if process["state"] == fields["state"] and fields["executortype"] in (
                     "", process["spec"]["conditions"]["executortype"])]
        if fields["state"] >= SUCCESS:
            found.reverse()  # the newest first
        elif fields["state"] == RUNNING:
            found.sort(key=lambda process: process["starttime"])  # the oldest start first
        return found[:fields["count"]] or None

    def on_closesuccessful(self, caller: str, fields: dict[str, Any]) -> Any:
        process = self._mine(caller, fields["processid"])
        if process["state"] not in (RUNNING, SUCCESS):
            raise Refused(400, "Tried to set failed or cancelled process as successful")
        if "\\u0000" in json.dumps(fields["out"]):
            raise Refused(400, "pq: unsupported Unicode escape sequence")
        self.closed[process["processid"]] = caller, len(self.calls) + 1  # and this one
        self._end(process, SUCCESS, out=fields["out"] or process["out"])
        for child in map(self.processes.__getitem__, process["children"]):
            child["waitforparents"] = any(self.processes[parent]["state"] != SUCCESS
                                          for parent in child["parents"])
        return {}

    def on_closefailed(self, caller: str, fields: dict[str, Any]) -> Any:
        process = self._mine(caller, fields["processid"])
        if process["state"] != RUNNING:
            raise Refused(400, "Tried to set successful, failed or cancelled process as failed")
        if any("\0" in text for text in fields["errors"]):
            self._fail(process, [])
            raise Refused(400, "pq: invalid byte sequence for encoding \"UTF8\": 0x00")
        self.closed[process["processid"]] = caller, len(self.calls) + 1
        self._fail(process, fields["errors"])
        return {}

    def on_cancelprocess(self, caller: str, fields: dict[str, Any]) -> Any:
        process = self._process(caller, fields["processid"])
        if process["processgraphid"]:
            raise Refused(400, "cannot cancel a process part of a workflow")
        if process["state"] not in (WAITING, RUNNING):
            raise Refused(400, "Tried to cancel a process that has ended")
        self._end(process, CANCELLED)
        return {}

    def on_cancelprocessgraph(self, caller: str, fields: dict[str, Any]) -> Any:
        if fields["processgraphid"] not in self.graphs:
            raise Refused(500, "Failed to cancel processgraph, graph is nil")
        self._member(caller)
        for process in self.graphs[fields["processgraphid"]]:
            if process["state"] in (WAITING, RUNNING):
                self._end(process, CANCELLED)
        return {}

    def on_setoutput(self, caller: str, fields: dict[str, Any]) -> Any:
        process = self._mine(caller, fields["processid"])
        if process["state"] != RUNNING:
            raise Refused(403, "Failed to set output, process is not running")
        if "\\u0000" in json.dumps(fields["out"]):
            raise Refused(400, "pq: unsupported Unicode escape sequence")
        process["out"] = fields["out"] or process["out"]
        return {}

    def on_addlog(self, caller: str, fields: dict[str, Any]) -> Any:
        process = self._process(caller, fields["processid"])
        if process["state"] != RUNNING or process["assignedexecutorid"] != caller:
            raise Refused(403, "Failed to add log, not running or not assigned to this executor")
        if "\0" in fields["message"]:
            raise Refused(400, "pq: invalid byte sequence for encoding \"UTF8\": 0x00")
        self.logs.append({"processid": process["processid"], "colonyname": COLONY_NAME,
                          "executorname": self._member(caller), "message": fields["message"],
                          "timestamp": time.time_ns()})
        return {}

    def on_getlogs(self, caller: str, fields: dict[str, Any]) -> Any:
        if not fields["executorname"]:
            self._process(caller, fields["processid"])
        self._member(caller)
        if fields["count"] > 500:
            raise Refused(403, "Count exceeds max log count (500)")
        field = "executorname" if fields["executorname"] else "processid"
        return [log for log in self.logs if log[field] == fields[field]
                and log["timestamp"] > fields["since"]][:fields["count"]] or None

    # -- crons

    def on_addcron(self, caller: str, fields: dict[str, Any]) -> Any:
        cron = fields["cron"]
        name = self._member(caller, cron)
        try:
            self._workflow(cron)
            if cron["interval"] == 0:
                raise ValueError("Cron interval must be -1 (disabled) or larger than 0")
            due = next_run(cron["cronexpression"], datetime.now(ZONE))
        except (ValueError, TypeError) as error:
            raise Refused(400, str(error)) from None
        if any(other["name"] == cron["name"] for other in self.crons.values()):  # it looks last
            raise Refused(400, f"Cron with name <{cron['name']}> in Colony <{COLONY_NAME}> already"
                          " exists" if self.generation == 2026 else "pq: duplicate key value"
                          ' violates unique constraint "prod_crons_name_key"')
        cron.update(cronid=secrets.token_hex(32), initiatorid=caller, initiatorname=name,
                    nextrun=rfc3339(due.timestamp()), lastrun=NEVER,
                    prevprocessgraphid="", waitforprevprocessgraph=False, checkerperiod=1000)
        self.crons[cron["cronid"]] = cron
        return cron

    def _workflow(self, cron: dict[str, Any]) -> list[dict[str, Any]]:
        specs: list[dict[str, Any]] = decode(
            json.loads(cron["workflowspec"]), WORKFLOW)["functionspecs"]
        self._checked(specs)
        return specs

    def on_getcrons(self, caller: str, fields: dict[str, Any]) -> Any:
        self._member(caller, fields)
        return list(self.crons.values())[:fields["count"]] or None

    def on_runcron(self, caller: str, fields: dict[str, Any]) -> Any:
        cron = self._cron(caller, fields)
        former = self.graphs.get(cron["prevprocessgraphid"], [])
        before = [text for process in former if not process["children"] for text in process["out"]]
        graph = self._submit_all(cron["initiatorid"], cron["initiatorname"], self._workflow(cron),
                                 before)
        cron.update(lastrun=rfc3339(), prevprocessgraphid=graph)
        return cron

    def on_removecron(self, caller: str, fields: dict[str, Any]) -> Any:
        del self.crons[self._cron(caller, fields)["cronid"]]
        return {}

    on_deletecron = on_removecron

    def _cron(self, caller: str, fields: dict[str, Any]) -> dict[str, Any]:
        if fields["cronid"] not in self.crons:
            raise Refused(500, "cron is nil")
        self._member(caller)
        return self.crons[fields["cronid"]]


class Client:
    """A member of the colony who submits work and looks at it; STANDIN is its server, if known."""

    def __init__(self, host: str, port: int, key: str = USER_KEY, owner_key: str = OWNER_KEY,
                 colony_name: str = COLONY_NAME, colony_id: str = "",
                 standin: Standin | None = None) -> None:
        self.url, self.key, self.owner_key = f"http://{host}:{port}/api", key, owner_key
        self.standin = standin
        self.colony = {"colonyname": colony_name, "colonyid": colony_id or identity(owner_key)}
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(self, msgtype: str, key: str = "", **fields: Any) -> Any:
        """Send a message, signed by KEY or the member; return the answer or raise Refused."""
        message = {"msgtype": msgtype, **self.colony, **fields}
        payload = base64.b64encode(json.dumps(message).encode()).decode()
        body = {"payloadtype": msgtype, "payload": payload,
                "signature": sign(key or self.key, payload)}
        try:
            with self.opener.open(self.url, json.dumps(body).encode(), timeout=150) as reply:
                return json.loads(base64.b64decode(json.loads(reply.read())["payload"]))
        except urllib.error.HTTPError as error:
            first = json.JSONDecoder().raw_decode(error.read().decode())[0]
            raise Refused(**json.loads(base64.b64decode(first["payload"]))) from None

    def generation(self) -> int:
        """2023 or 2026: the older does not know logs."""
        try:
            self.call("getlogsmsg", processid="", count=1)
        except Refused as error:
            return 2023 if "PayloadType" in error.message else 2026
        return 2026

    def submit(self, funcname: str = "backup", executortype: str = "backup", args: Any = (),
               kwargs: Any = None, maxexectime: int = -1, maxretries: int = -1) -> str:
        """Submit a process; return its id."""
        return self.call("submitfuncspecmsg", spec={
            "nodename": "", "funcname": funcname, "args": list(args), "kwargs": kwargs or {},
            "maxwaittime": -1, "maxexectime": maxexectime, "maxretries": maxretries,
            "conditions": {"executortype": executortype, **self.colony}})["processid"]

    def process(self, identifier: str) -> dict[str, Any]:
        return self.call("getprocessmsg", processid=identifier)

    def wait(self, identifier: str, states: Any = (SUCCESS, FAILED, CANCELLED),
             timeout: float = PATIENCE) -> dict[str, Any]:
        """Wait until a process is in one of the states; return it."""
        wanted = (states,) if isinstance(states, int) else states
        deadline = time.monotonic() + timeout
        while True:
            if self.standin:
                self.standin.wait_state(identifier, wanted, deadline - time.monotonic())
            process = self.process(identifier)
            if process["state"] in wanted:
                return process
            if time.monotonic() > deadline:
                raise AssertionError(f"not in state {states} after {timeout} s: {process}")
            threading.Event().wait(0.05)  # a member learns it only by asking

    def cancel(self, identifier: str) -> None:
        """Cancel a process; that of a workflow with all of it."""
        graph = self.process(identifier)["processgraphid"]
        kind, field = ("processgraph", graph) if graph else ("process", identifier)
        self.call(f"cancel{kind}msg", **{f"{kind}id": field})

    def submit_workflow(self, executortype: str, *functions: str) -> list[str]:
        """Submit processes each of which depends on the one before; their ids."""
        nodes = [{"nodename": name, "funcname": name, "conditions": {
            "executortype": executortype, "dependencies": [*functions[:at]][-1:], **self.colony}}
            for at, name in enumerate(functions)]
        graph = self.call("submitworkflowspecmsg", spec={"functionspecs": nodes, **self.colony})
        return graph["processids"]

    def pause(self, resume: bool = False) -> None:
        """Have the owner pause the colony, or resume it."""
        self.call("resumeassignmentsmsg" if resume else "pauseassignmentsmsg", self.owner_key)

    def crons(self) -> list[dict[str, Any]]:
        return self.call("getcronsmsg", count=1000) or []

    def logs(self, identifier: str) -> str:
        """The process's log so far (2026)."""
        entries = self.call("getlogsmsg", processid=identifier, executorname="", count=500, since=0)
        return "".join(entry["message"] for entry in entries or [])


class Colony(NamedTuple):
    """A colony to test against: the stand-in's, or a real server's."""

    host: str
    port: int
    name: str
    id: str
    owner_key: str
    user_key: str
    generation: int
    standin: Standin | None

    def client(self, port: int = 0) -> Client:
        return Client(self.host, port or self.port, self.user_key, self.owner_key, self.name,
                      self.id, self.standin)

    def settings(self, port: int = 0) -> dict[str, str]:
        """An executor's settings for it; PORT that of a proxy in front of it."""
        return {"COLONIES_SERVER_HOST": self.host, "COLONIES_SERVER_PORT": str(port or self.port),
                "COLONIES_TLS": "false", "COLONIES_COLONY_NAME": self.name,
                "COLONIES_COLONY_ID": self.id, "COLONIES_COLONY_PRVKEY": self.owner_key}


@contextlib.contextmanager
def colony(**options: Any) -> Iterator[Colony]:
    """The server that COLONIES_SERVER_HOST names, else a stand-in made with OPTIONS."""
    env = os.environ
    if env.get("COLONIES_SERVER_HOST"):
        real = Colony(env["COLONIES_SERVER_HOST"], int(env["COLONIES_SERVER_PORT"]),
                      env.get("COLONIES_COLONY_NAME", ""), env.get("COLONIES_COLONY_ID", ""),
                      env["COLONIES_COLONY_PRVKEY"], env["COLONIES_PRVKEY"], 0, None)
        yield real._replace(generation=real.client().generation())
    else:
        with Standin(**options) as standin:
            yield standin.colony()
