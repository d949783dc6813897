"""Proxies that break what passes, and the faults that they make."""
from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import json
import random
import re
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import trustme

from servers import PATIENCE, Server, free_ports

# ---- A proxy that breaks things ----------------------------------------------------------------

FOREVER = float("inf")


@dataclasses.dataclass(eq=False)
class Rule:
    """What is done with the requests that match, TIMES times; FOREVER also outlasts clear()."""

    matches: Callable[[bytes], object]
    action: str
    argument: Any
    times: float


@dataclasses.dataclass(eq=False)
class Session:
    """What isn't HTTP: its first packet, and how many bytes it was answered."""

    first: bytes
    answered: int = 0


class Tap(NamedTuple):
    """A connection, where what it receives is changed on its way, piece by piece."""

    connection: socket.socket
    change: Callable[[bytes], bytes]

    def recv(self, size: int) -> bytes:
        return self.change(self.connection.recv(size))

    def sendall(self, data: bytes) -> None:
        self.connection.sendall(data)

    def fileno(self) -> int:
        return self.connection.fileno()


Connection = socket.socket | Tap
Which = bytes | Callable[[bytes], object]


class Proxy(Server):
    """A TCP proxy that delivers, loses, cuts or answers HTTP requests by what is in them.

    Which requests: a pattern that is searched in a request's head and the first 64 KiB of its body,
    or a function that says of these whether it is one. What isn't HTTP (PostgreSQL, TLS) has but
    one request, its first packet, and knows shear(), reply(), change(), refuse() and delay().

    .request, .answer and .other change what passes, pieces as they come: of requests, of answers
    without a body (to HEAD), and of others.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        self.target, self.port = target, port or free_ports(1)[0]
        self.changed = threading.Condition()
        self.requests: list[bytes] = []
        self.sessions: list[Session] = []
        self.rules: list[Rule] = []
        self.connections: set[socket.socket] = set()
        self.flowing = threading.Event()
        self.listener: socket.socket | None = None
        self.request: Callable[[bytes], bytes] = bytes
        self.answer: Callable[[bytes], bytes] = bytes
        self.other: Callable[[bytes], bytes] = bytes

    # -- what tests do with it

    def start(self) -> Proxy:
        self.up()
        return self

    def up(self) -> None:
        """Deliver again, after down() or hang(); on the same port."""
        self.flowing.set()
        if self.listener is None:
            self.listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
            threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections, and cut those that there are."""
        with self.changed:
            listener, self.listener = self.listener, None
        if listener:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # which ends its accept()
            listener.close()
        self.drop()
        self.flowing.set()  # those who wait find their connections cut

    stop = kill = down

    @property
    def running(self) -> bool:
        return self.listener is not None

    def hang(self) -> None:
        """Accept connections and requests, but pass nothing on."""
        self.flowing.clear()

    def lose(self, which: Which, times: float = 1) -> None:
        """Deliver the next matching requests, throw their answers away, and hang up."""
        self._add(which, "lose", None, times)

    def cut(self, which: Which, after: int = 0, times: float = 1) -> None:
        """Hang up on both sides AFTER bytes of the next matching requests' bodies."""
        self._add(which, "cut", after, times)

    def shear(self, which: Which, after: int, times: float = 1) -> None:
        """Hang up on both sides AFTER bytes of the answers to the next matching requests."""
        self._add(which, "shear", after, times)

    def reply(self, which: Which, raw: bytes | Callable[[bytes], Iterator[bytes]],
              times: float = 1) -> None:
        """Answer the next matching requests with these bytes, and hang up; deliver nothing.

        RAW may make them of the request.
        """
        self._add(which, "reply", raw, times)

    def change(self, which: Which, how: Callable[[bytes], Iterator[bytes]],
               times: float = 1) -> None:
        """Deliver the next matching requests, answer with what HOW makes of the answers."""
        self._add(which, "change", how, times)

    def refuse(self, which: Which, seconds: float, times: float = 1) -> None:
        """At the next matching requests cut all connections, and take none for so long."""
        self._add(which, "refuse", seconds, times)

    def delay(self, which: Which, seconds: float, times: float = 1) -> None:
        """Deliver the next matching requests, and wait so long before the answers."""
        self._add(which, "delay", seconds, times)

    def expect(self, which: Which, times: int) -> None:
        """Let the next matching requests pass, whatever rules come after this one."""
        self._add(which, "pass", None, times)

    def drop(self) -> None:
        """Cut the connections that there are; new ones are taken."""
        with self.changed:
            open_ones = list(self.connections)
        for connection in open_ones:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def clear(self) -> None:
        """Forget the rules that are left, but those that hold for ever."""
        with self.changed:
            self.rules = [rule for rule in self.rules if rule.times == FOREVER]

    def seen(self, pattern: bytes) -> int:
        """How many requests matched so far, delivered or not."""
        with self.changed:
            return sum(bool(re.search(pattern, request)) for request in self.requests)

    def wait_seen(self, pattern: bytes, count: int = 1, timeout: float = PATIENCE) -> None:
        """Wait until COUNT requests have matched, from the start."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.seen(pattern) >= count, timeout):
                raise AssertionError(f"no {count} requests matched {pattern!r} in {timeout} s")

    # -- how it does it

    def _add(self, which: Which, action: str, argument: Any, times: float) -> None:
        matches = re.compile(which).search if isinstance(which, bytes) else which
        with self.changed:
            self.rules += [Rule(matches, action, argument, times)] if times else []

    def _asked(self, data: bytes) -> bytes:
        """A piece of a request; .request may change amid it."""
        return self.request(data)

    def _taken(self, request: bytes) -> Rule | None:
        """Count a request; what is to be done with it."""
        with self.changed:
            rule = next((rule for rule in self.rules if rule.matches(request)), None)
            if rule:
                rule.times -= 1
                if not rule.times:
                    self.rules.remove(rule)
            self.requests.append(request)
            self.changed.notify_all()
        return None if rule and rule.action == "pass" else rule

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError))
            stack.callback(self._forget, client)
            with self.changed:
                if self.listener is None:
                    return
                self.connections.add(client)
            first = client.recv(8, socket.MSG_PEEK)
            self.flowing.wait()
            server = socket.create_connection(("127.0.0.1", self.target), 10)
            server.settimeout(None)
            stack.callback(self._forget, server)
            with self.changed:
                self.connections.add(server)
            if re.match(rb"[A-Z]{3,8} ?", first):
                while self._exchange(Tap(client, self._asked), server):
                    pass
            else:
                self._plain(client, server)

    def _plain(self, client: socket.socket, server: socket.socket) -> None:
        """What isn't HTTP, both ways."""
        session = Session(client.recv(4096, socket.MSG_PEEK))
        rule = self._taken(session.first)
        with self.changed:
            self.sessions.append(session)
        if rule and self._instead(rule, session.first, client):
            return
        there = threading.Thread(target=self._pump, args=(client, server), daemon=True)
        there.start()
        with contextlib.suppress(OSError):
            self._back(server, client, session, rule)
        for connection in (client, server):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        there.join()

    def _instead(self, rule: Rule, request: bytes, client: Connection) -> bool:
        """Do what RULE says in place of delivering a request; whether it says such a thing."""
        if rule.action == "refuse":
            self.down()
            threading.Timer(rule.argument, self.up).start()
        elif rule.action == "reply":
            for piece in rule.argument(request) if callable(rule.argument) else [rule.argument]:
                client.sendall(piece)
        return rule.action in ("refuse", "reply")

    def _back(self, server: socket.socket, client: socket.socket, session: Session,
              rule: Rule | None) -> None:
        """Pass a session's answers on, or what RULE makes of them."""
        action = rule.action if rule else ""
        argument: Any = rule.argument if rule else None
        if action == "delay":
            threading.Event().wait(argument)
        while data := server.recv(65536):
            self.flowing.wait()
            if action == "shear" and session.answered + len(data) > argument:
                return client.sendall(data[:argument - session.answered])
            for piece in argument(data) if action == "change" else [data]:
                client.sendall(piece)
            session.answered += len(data)

    def _forget(self, connection: socket.socket) -> None:
        with self.changed:
            self.connections.discard(connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        """Pass bytes on until one side hangs up."""
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.flowing.wait()
                target.sendall(data)
        for connection in (source, target):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _exchange(self, client: Connection, server: socket.socket) -> bool:
        """One HTTP request and its answer; whether the connection goes on."""
        if server in select.select([client, server], [], [])[0]:
            return False  # an idle connection was closed
        head, rest = read_head(client)
        length = int((re.search(rb"(?im)^content-length:\s*(\d+)", head) or [0, 0])[1])
        if re.search(rb"(?im)^expect:\s*100-continue", head):
            # the client waits for this before its body, which is needed to see what it asks
            head = re.sub(rb"(?im)^expect:.*\r\n", b"", head)
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = rest
        while len(body) < min(length, 65536):
            body += receive(client)
        request = head + body[:65536]
        rule = self._taken(request)
        self.flowing.wait()
        if rule and rule.action == "reply":
            for _ in more(client, length - len(body)):
                pass
        if rule and self._instead(rule, request, client):
            return False
        if rule and rule.action == "cut":
            server.sendall(head + body[:rule.argument])
            for data in more(client, rule.argument - len(body)):
                server.sendall(data)
            return False
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            # a server may refuse, and hang up, before it has read it all: its answer counts
            server.sendall(head + body)
            for data in more(client, length - len(body)):
                self.flowing.wait()
                server.sendall(data)
        if rule and rule.action == "double":
            with socket.create_connection(("127.0.0.1", self.target), 10) as first:
                first.settimeout(None)
                self._answer(first, server, head.startswith(b"HEAD "), rule)
                first.sendall(head + body)  # such a body has at most 64 KiB
                self._answer(client, first, head.startswith(b"HEAD "), None)
                return False
        if rule and rule.action == "delay":
            threading.Event().wait(rule.argument)
            rule = None
        if client in select.select([client, server], [], [])[0]:
            return False  # the client gave up: so does the proxy
        return self._answer(client, server, head.startswith(b"HEAD "), rule)

    def _answer(self, client: Connection, connection: socket.socket, bare: bool,
                rule: Rule | None) -> bool:
        """Pass the server's answer on, or what RULE makes of it; whether the connection goes on."""
        passed, taken = 0, list[bytes]()
        server = Tap(connection, self.answer if bare else self.other)

        def give(data: bytes) -> None:
            nonlocal passed
            if rule and rule.action != "shear":
                taken.append(data)
                return
            if rule and passed + len(data) > rule.argument:
                client.sendall(data[:rule.argument - passed])
                raise ConnectionAbortedError
            client.sendall(data)
            passed += len(data)

        head, rest = read_head(server)
        bare = bare or bool(re.match(rb"HTTP/1.\d (1\d\d|204|304)", head))
        length = re.search(rb"(?im)^content-length:\s*(\d+)", head)
        chunked = re.search(rb"(?im)^transfer-encoding:\s*chunked", head)
        self.flowing.wait()
        give(head + rest)
        if not bare and length:
            rest_of_it = more(server, int(length[1]) - len(rest))
        elif not bare:
            rest_of_it = until(server, rest, b"\r\n0\r\n\r\n" if chunked else None)
        else:
            rest_of_it = iter(())
        for data in rest_of_it:
            self.flowing.wait()
            give(data)
        for piece in rule.argument(b"".join(taken)) if rule and rule.action == "change" else ():
            client.sendall(piece)
        return not rule and not re.search(rb"(?im)^connection:\s*close", head) and bool(
            bare or length or chunked)


def receive(connection: Connection) -> bytes:
    """Some bytes; ConnectionAbortedError at the end."""
    data = connection.recv(65536)
    if not data:
        raise ConnectionAbortedError
    return data


def read_head(connection: Connection) -> tuple[bytes, bytes]:
    """An HTTP head, and what came with it of the body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += receive(connection)
    head, end, rest = data.partition(b"\r\n\r\n")
    return head + end, rest


def more(connection: Connection, count: int) -> Iterator[bytes]:
    """COUNT bytes (none if that is negative), as they come."""
    while count > 0:
        data = connection.recv(min(count, 65536))
        if not data:
            raise ConnectionAbortedError
        count -= len(data)
        yield data


def until(connection: Connection, seen: bytes, end: bytes | None) -> Iterator[bytes]:
    """Bytes as they come until those so far end with END, or the connection does."""
    last = b"\r\n" + seen
    while not (end and last.endswith(end)):
        data = connection.recv(65536)
        if not data:
            return
        last = (last + data)[-64:]
        yield data


# ---- Answers of servers, and what leads through a proxy ----------------------------------------

def http_reply(status: str, body: bytes, length: int = -1) -> bytes:
    return (f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length < 0 else length}\r\n"
            "Connection: close\r\n\r\n").encode() + body


def http_answer(line: str, code: str, message: str = "a test says so") -> bytes:
    """An S3 server's error, as it goes over the wire."""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>" if code else ""
    return (f"HTTP/1.1 {line}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}"
            f"\r\nConnection: close\r\n\r\n{body}").encode()


FORBIDDEN = http_answer("403 Forbidden", "AccessDenied")
SLOW = http_answer("503 Slow Down", "SlowDown")
PART = rb"^PUT \S*partNumber="  # requests of an upload, as a Proxy sees them
COMPLETING = rb"^POST \S*uploadId="


def through(proxy: Proxy, scale: float = 1) -> dict[str, str]:
    """Settings that lead through a proxy before S3."""
    return {"AWS_S3_ENDPOINT": f"127.0.0.1:{proxy.port}", "BACKUP_TIME_SCALE": str(scale)}


class Encrypting(Proxy):
    """A proxy that makes of each ETag one that is no MD5, as S3 has them for what it encrypts."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self.request = self.answer = self.other = self.reversed

    @staticmethod
    def reversed(data: bytes) -> bytes:
        """Each ETag backwards: what the server knows, and what the client knows instead."""
        return re.sub(rb'(?i)(etag(?:: |>)(?:"|&#34;|&quot;))([0-9a-f]{32})',
                      lambda found: found[1] + found[2][::-1], data)


# ---- Faults ------------------------------------------------------------------------------------

WEIRD = random.Random(6).randbytes(4000)


class Fault(NamedTuple):
    """What a proxy does at a call: its method, that method's argument, and for how many calls."""

    name: str
    action: str
    argument: Any = None
    times: int = 1
    at: str = ""  # a pattern of the calls that it is for; "": of each
    # A pattern of what the process says that fails of it. "": it passes when the call is made
    # again, so nothing may come of it.
    lasting: str = ""

    @property
    def believed(self) -> bool:
        """Whether it is a whole answer, which nothing but its body shows to be none of S3's."""
        return isinstance(self.argument, bytes) and self.argument.startswith(b"HTTP/1.1 200 ")


def endless(_: bytes) -> Iterator[bytes]:
    """An answer that goes on for as long as it is read."""
    yield b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"
    while True:
        yield b"<x>" * 20000
        threading.Event().wait(0.001)


def trickle(answer: bytes, seconds: float = 2) -> Iterator[bytes]:
    """The answer, bit by bit."""
    step = max(1, len(answer) // 40)
    for start in range(0, len(answer), step):
        yield answer[start:start + step]
        threading.Event().wait(seconds / 40)


def drip(_: bytes) -> Iterator[bytes]:
    """An answer of which always some more comes."""
    yield b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    while True:
        yield b" "
        threading.Event().wait(0.2)


def silence(seconds: float, _: bytes) -> Iterator[bytes]:
    """Nothing; then it hangs up."""
    threading.Event().wait(seconds)
    yield b""


def http_faults(elsewhere: int, patience: float) -> list[Fault]:
    """The ways in which a call by HTTP goes wrong; PATIENCE seconds are more than a caller has.

    S3 means it by a redirection. But a 303 is as good as no answer: botocore has given urllib3 its
    headers as bytes, and that fails when it takes some away for the GET that it would send.
    """
    far = f"\r\nLocation: http://127.0.0.1:{elsewhere}/away"
    refused = json.dumps({"payloadtype": "error", "error": True, "payload": base64.b64encode(
        b'{"status": 500, "message": "by a test"}').decode()})
    return [
        Fault("refused for a second", "refuse", 1),
        Fault("no answer", "reply", functools.partial(silence, patience)),
        Fault("request cut", "cut", 0), Fault("request cut in its body", "cut", 40),
        Fault("answer lost", "lose"), Fault("delivered twice", "double"),
        Fault("answer cut in its head", "change", lambda answer: iter([answer[:20]])),
        Fault("answer without its body", "change",
              lambda answer: iter([answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"])),
        Fault("answer shorter than its length", "change", lambda answer: iter([answer[:-9]])),
        Fault("answer in a trickle", "change", trickle),
        Fault("answer without an end", "reply", endless),
        Fault("garbage", "reply", WEIRD),
        Fault("garbage as a body", "reply", http_reply("200 OK", b"\x01\xff{<" * 99)),
        Fault("an empty body", "reply", http_reply("200 OK", b"")),
        Fault("200 with an error inside", "reply", http_answer("200 OK", "InternalError"), 3),
        Fault("200 with a refusal inside", "reply", http_reply("200 OK", refused.encode()), 3),
        *(Fault(f"{status[:3]}{' with Retry-After' * bool(more)}", "reply",
                http_answer(status + more, "InternalError"), 3)
          for status in ("500 Internal Server Error", "503 Slow Down", "429 Too Many Requests")
          for more in ("", "\r\nRetry-After: 1")),
        *(Fault(f"redirect, {status[:3]}", "reply", http_answer(status + far, "Moved"), 2,
                lasting="" if status[:3] == "303" else rf"\(({status[:3]}|Moved)\)")
          for status in ("301 Moved Permanently", "302 Found", "303 See Other",
                         "307 Temporary Redirect", "308 Permanent Redirect"))]


def s3_faults(elsewhere: int) -> list[Fault]:
    """The ways in which a call to S3 goes wrong: those that pass, and those that S3 means."""
    def refused(status: str, code: str, times: int = 3, at: str = "",
                lasting: bool = False) -> Fault:
        return Fault(f"{status[:3]} {code}", "reply", http_answer(status, code), times, at,
                     rf"\(({status[:3]}|{code})\)" if lasting else "")

    return [
        *http_faults(elsewhere, 6),
        refused("409 Conflict", "OperationAborted"),
        refused("412 Precondition Failed", "PreconditionFailed"),
        *(refused("400 Bad Request", code, at="PUT|POST")  # where something is sent
          for code in ("RequestTimeout", "IncompleteBody", "BadDigest")),
        refused("403 Forbidden", "AccessDenied", 1, lasting=True),
        refused("501 Not Implemented", "NotImplemented", 2, lasting=True),
        # Once: then it is another upload's turn, or one without a condition, which a server may
        # not know. Of a part twice: the second upload is for the next run to begin anew.
        refused("404 Not Found", "NoSuchUpload", 1, "uploadId|partNumber"),
        refused("404 Not Found", "NoSuchUpload", 2, "partNumber", lasting=True),
        refused("501 Not Implemented", "NotImplemented", 1, "uploadId|partNumber")]


def colonies_faults(elsewhere: int) -> list[Fault]:
    """The ways in which a call to Colonies goes wrong."""
    def refusal(status: str) -> bytes:
        said = json.dumps({"status": int(status[:3]), "message": "a test says so"})
        return http_reply(status, json.dumps({
            "payloadtype": "error", "error": True,
            "payload": base64.b64encode(said.encode()).decode()}).encode())

    return [*http_faults(elsewhere, 30),
            *(Fault(f"refused with {status[:3]}", "reply", refusal(status), 2, at)
              for status, at in (("403 Forbidden", ""), ("404 Not Found", "getprocessmsg"),
                                 ("500 Internal Server Error", "close")))]


def wire_faults(length: int) -> list[Fault]:
    """The ways in which a session of PostgreSQL goes wrong; LENGTH: of its answers in bytes.

    Another database's differs by some: so none is cut in the last 40, where it may be over.
    """
    cuts = sorted({0, 1, 20, 400, length - 40, *range(0, length - 40, max(1, length // 12))})
    return [Fault("no answer for 2 s", "delay", 2),
            Fault("a trickle", "change", functools.partial(trickle, seconds=0.2)),
            Fault("refused for a second", "refuse", 1, lasting=".*connection to server "),
            Fault("garbage", "reply", WEIRD, lasting=".*connection to server "),
            Fault("endless garbage", "reply", endless, lasting=".*connection to server "),
            *(Fault(f"cut after {count} bytes", "shear", count,
                    lasting=".*server closed the connection unexpectedly") for count in cuts)]


class Severing(Proxy):
    """It cuts connections that carry what isn't HTTP after so many of the client's bytes, a few."""

    def __init__(self, target: int, after: int, times: int = 2) -> None:
        super().__init__(target)
        self.after, self.left = after, times

    def _plain(self, client: socket.socket, server: socket.socket) -> None:
        back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
        back.start()
        passed = 0
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                passed += len(data)
                with self.changed:
                    if self.left and passed > self.after:
                        self.left -= 1
                        break
                server.sendall(data)
        for connection in (client, server):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        back.join()


class Stranger(Server):
    """It answers whatever comes with the same bytes, over TLS if it has a context for that."""

    def __init__(self, answer: bytes = b"", tls: ssl.SSLContext | None = None) -> None:
        self.answer, self.tls, self.received, self.connections = answer, tls, list[bytes](), 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self.listener.getsockname()[1]

    def start(self) -> Stranger:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def kill(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            stream = self.tls.wrap_socket(client, server_side=True) if self.tls else client
            with stream:
                said = receive(stream)
                while said[:1].isupper() and b"\r\n\r\n" not in said:
                    said += receive(stream)
                length = re.search(rb"(?i)\ncontent-length: *(\d+)", said)
                whole = len(said.partition(b"\r\n\r\n")[0]) + 4 + int(length[1] if length else 0)
                while length and b"100-continue" not in said and len(said) < whole:
                    said += receive(stream)
                self.received.append(said)
                stream.sendall(self.answer)


AUTHORITY, AGE = "127.0.0.1", timedelta(days=30)  # whom certificates are for, and for how long


def secured(folder: Path, how: str) -> tuple[ssl.SSLContext | None, str]:
    """A server's side of TLS that is right, or wrong in one way; the file of who is trusted."""
    authority, now = trustme.CA(), datetime.now(timezone.utc)
    trusted = trustme.CA() if how == "unknown authority" else authority
    trusted.cert_pem.write_to_path(str(folder / "ca.pem"))
    when = {"expired": (now - AGE, now - AGE / 30), "not yet valid": (now + AGE / 30, now + AGE)}
    begin, end = when.get(how, (now - AGE, now + AGE))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("192.0.2.1" if how == "another host" else AUTHORITY,
                         not_before=begin, not_after=end).configure_cert(context)
    if how == "TLS 1.1":
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return None if how == "no TLS" else context, str(folder / "ca.pem")
