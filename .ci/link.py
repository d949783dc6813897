"""A line to an S3 server in a network namespace of its own: the kernel between makes it slow."""
from __future__ import annotations

import collections
import ctypes
import fcntl
import os
import re
import select
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from environment import ROOT

PATH = "/usr/sbin:/sbin:/usr/bin:/bin"
TUNSETIFF, IFF_TUN, IFF_NO_PI, CLONE_NEWNET = 0x400454CA, 1, 0x1000, 0x40000000
NEAR, FAR = "198.18.0.1", "198.18.0.2"  # of the network for benchmarks (RFC 2544)
MTU = 65_000  # few packets, so that it takes little of the processors
MOST_LATE = 200  # ms for which a packet waits at most, where the line is full


def speed_of(text: str) -> tuple[int, int]:
    """Mbit/s, and ms there and back, of "400mbit,10ms". Raises ValueError."""
    found = re.fullmatch(r"(\d+)mbit,(\d+)ms", text)
    if not found:
        raise ValueError(text)
    return int(found[1]), int(found[2])


def lacking() -> str:
    """What a line takes that is not here; "": all is."""
    if not ROOT:
        return "root"
    if not os.path.exists("/dev/net/tun"):
        return "/dev/net/tun"
    absent = [each for each in ("ip", "tc", "nsenter") if not shutil.which(each, path=PATH)]
    if absent:
        return f"{' and '.join(absent)} (Debian: iproute2, util-linux)"
    try:
        with line((400, 0)):
            return ""
    except RuntimeError as error:  # root of a container may not
        return f"what ip and tc are not allowed here: {error}"


@contextmanager
def line(speed: tuple[int, int]) -> Iterator[list[str]]:
    """A line of such a speed, to FAR; what a command begins with that is to run there."""
    with subprocess.Popen([sys.executable, __file__, *map(str, speed)],
                          stdout=subprocess.PIPE) as program:
        try:
            assert program.stdout
            if program.stdout.readline() != b"ready\n":
                raise RuntimeError("there is no line: see what ip or tc says")
            yield [str(shutil.which("nsenter", path=PATH)), "-n", "-t", str(program.pid), "--"]
        finally:
            program.kill()  # and all that was made is gone


def end_of_line(own: str, other: str, rate: int) -> int:
    """Make a device in this namespace, to which the kernel writes no faster; a packet at a read."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    made = fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"", IFF_TUN | IFF_NO_PI))
    name = made[:16].rstrip(b"\0").decode()
    shaped = f"tbf rate {rate}mbit burst 256kb latency {MOST_LATE}ms"
    for command in (f"ip address add {own} peer {other} dev {name}", "ip link set lo up",
                    f"ip link set {name} mtu {MTU} up", f"tc qdisc add dev {name} root {shaped}"):
        subprocess.run(command.split(), env={"PATH": PATH}, check=True)
    return device


def be_a_line(rate: int, delay: int) -> None:
    """Carry packets, each half of DELAY ms later: not every kernel has netem, which does that."""
    os.nice(-10)  # or what is measured would make it slower
    ends = [end_of_line(NEAR, FAR, rate)]
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    ends.append(end_of_line(FAR, NEAR, rate))
    print("ready", flush=True)
    parent, way = os.getppid(), dict(zip(ends, reversed(ends)))
    late: dict[int, collections.deque[tuple[float, bytes]]] = {
        end: collections.deque() for end in ends}
    while os.getppid() == parent:
        now = time.monotonic()
        for end, packets in late.items():
            while packets and packets[0][0] <= now:
                os.write(end, packets.popleft()[1])
        due = min((packets[0][0] for packets in late.values() if packets), default=now + 1)
        for end in select.select(ends, [], [], max(0, due - now))[0]:
            late[way[end]].append((time.monotonic() + delay / 2000, os.read(end, MTU)))


if __name__ == "__main__":
    be_a_line(int(sys.argv[1]), int(sys.argv[2]))
