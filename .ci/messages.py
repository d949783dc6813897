"""What a Colonies server reads and writes: the types of messages' fields, times, crons."""
from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import Any

ZONE = timezone(timedelta(hours=1))  # a server's times carry its own zone

# Which types a message's fields have. Others are ignored, null stands for nothing, and a missing
# one is empty, as in the real server; a wrong type is refused.
COLONY = {"colonyname": str, "colonyid": str}
NAMES = {**COLONY, "executorname": str, "executorid": str}
CONDITIONS = {**COLONY, "executortype": str, "executornames": [str], "executorids": [str],
              "dependencies": [str], "cpu": str, "mem": str}
SPEC = {"nodename": str, "funcname": str, "args": list, "kwargs": dict, "priority": int,
        "maxwaittime": int, "maxexectime": int, "maxretries": int, "label": str, "env": dict,
        "conditions": CONDITIONS}
WORKFLOW = {**COLONY, "functionspecs": [SPEC]}
CAPABILITIES = {
    "hardware": [{"model": str, "nodes": int, "cpu": str, "cores": int, "mem": str, "storage": str,
                  "platform": str, "architecture": str, "network": [str]}],
    "software": [{"name": str, "type": str, "version": str}]}
FIELDS: dict[str, dict[str, Any]] = {
    "addexecutormsg": {"executor": {**NAMES, "executortype": str}},
    "approveexecutormsg": NAMES,
    "removeexecutormsg": NAMES,
    "deleteexecutormsg": NAMES,
    "rejectexecutormsg": NAMES,
    "getexecutorsmsg": COLONY,
    "removeusermsg": {"colonyname": str, "name": str},
    "updateexecutormsg": {**NAMES, "capabilities": CAPABILITIES},
    "addfunctionmsg": {"fun": {**NAMES, "executortype": str, "funcname": str, "description": str,
                               "desc": str, "args": [dict]}},
    "getfunctionsmsg": NAMES,
    "assignprocessmsg": {**COLONY, "timeout": int, "availablecpu": str, "availablemem": str},
    "getprocessmsg": {"processid": str},
    "getprocessesmsg": {**COLONY, "state": int, "executortype": str, "count": int},
    "addlogmsg": {"processid": str, "message": str},
    "getlogsmsg": {**COLONY, "processid": str, "executorname": str, "count": int, "since": int},
    "setoutputmsg": {"processid": str, "out": list},
    "closesuccessfulmsg": {"processid": str, "out": list},
    "closefailedmsg": {"processid": str, "errors": [str]},
    "submitfuncspecmsg": {"spec": SPEC},
    "cancelprocessmsg": {"processid": str},
    "submitworkflowspecmsg": {"spec": WORKFLOW},
    "cancelprocessgraphmsg": {"processgraphid": str},
    "pauseassignmentsmsg": COLONY,
    "resumeassignmentsmsg": COLONY,
    "addcronmsg": {"cron": {**COLONY, "name": str, "cronexpression": str, "interval": int,
                            "random": bool, "workflowspec": str}},
    "getcronsmsg": {**COLONY, "count": int},
    "runcronmsg": {"cronid": str},
    "removecronmsg": {"cronid": str},
    "deletecronmsg": {"cronid": str},
}
ONLY_2026 = {"removeexecutormsg", "removecronmsg", "addlogmsg", "getlogsmsg", "setoutputmsg",
             "cancelprocessmsg", "cancelprocessgraphmsg", "updateexecutormsg", "removeusermsg",
             "pauseassignmentsmsg", "resumeassignmentsmsg"}
ONLY_2023 = {"deleteexecutormsg", "deletecronmsg"}


def decode(value: Any, kind: Any) -> Any:
    """VALUE as a Go server reads it into a field of type KIND; TypeError if it can't."""
    if value is None:
        return [] if isinstance(kind, list) else {} if isinstance(kind, dict) else kind()
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            raise TypeError(f"not an object: {value!r}")
        return {name: decode(value.get(name), inner) for name, inner in kind.items()}
    if isinstance(kind, list):
        return [decode(item, kind[0]) for item in decode(value, list)]
    if type(value) is not kind:
        raise TypeError(f"not {kind.__name__}: {value!r}")
    return value


def rfc3339(seconds: float | None = None) -> str:
    """A time as Go writes it: nanoseconds without trailing zeros, and the zone."""
    nanoseconds = time.time_ns() if seconds is None else int(seconds * 1e9)
    moment = datetime.fromtimestamp(nanoseconds // 10**9, ZONE)
    fraction = f".{nanoseconds % 10**9:09d}".rstrip("0").rstrip(".")
    zone = moment.strftime("%z")
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + fraction + zone[:3] + ":" + zone[3:]


def next_run(expression: str, after: datetime) -> datetime:
    """When a cron expression (seconds first) is due next; ValueError if it is none."""
    ranges = [(0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]
    if len(expression.split()) != len(ranges):
        raise ValueError(f"expected exactly 6 fields: {expression!r}")
    sets = []
    for field, (low, high) in zip(expression.split(), ranges):
        values: set[int] = set()
        for item in field.split(","):
            span, _, step = item.partition("/")
            first, _, last = (f"{low}-{high}" if span in "*?" else span).partition("-")
            stop = int(last or (high if step else first))
            if not low <= int(first) <= stop <= high:
                raise ValueError(f"out of range: {field!r}")
            values.update(range(int(first), stop + 1, int(step or 1)))
        sets.append(sorted(values))
    seconds, minutes, hours, days, months, weekdays = sets
    midnight = after.replace(hour=0, minute=0, second=0, microsecond=0)
    for day in (midnight + timedelta(days=number) for number in range(366 * 8)):
        if day.day in days and day.month in months and day.isoweekday() % 7 in weekdays:
            for due in (day.replace(hour=hour, minute=minute, second=second)
                        for hour in hours for minute in minutes for second in seconds):
                if due > after:
                    return due
    raise ValueError(f"never due: {expression!r}")
