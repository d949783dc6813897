"""How the Colonies stand-in is reached: by HTTP, as far as its clients use it."""
from __future__ import annotations

import base64
import contextlib
import http.server
import json
import select
import socket
import ssl
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colonies import Standin


class StandinHTTP(http.server.ThreadingHTTPServer):
    """The stand-in's listener; closing it cuts the connections."""

    daemon_threads, block_on_close, request_queue_size = True, False, 128

    def __init__(self, standin: Standin) -> None:
        self.standin = standin
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", standin.port), StandinRequest)
        if standin.https:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*standin.https)
            self.socket = context.wrap_socket(self.socket, server_side=True,
                                              do_handshake_on_connect=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to print."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class StandinRequest(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandinHTTP

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/api":
            return self.reply(404, "404 page not found")
        standin = self.server.standin
        status, kind, payload = standin.answer(body, self.gone)
        reply = json.dumps({"payloadtype": kind, "error": status != 200,
                            "payload": base64.b64encode(payload.encode()).decode()})
        # a 2023 server goes on after some refusals and answers twice
        self.reply(status, reply * 2 if standin.generation == 2023 and status == 403 else reply)

    def do_GET(self) -> None:
        self.reply(*((200, "") if self.path == "/health" else (404, "404 page not found")))

    def gone(self) -> bool:
        """Whether the client has hung up: it has nothing to say before it is answered."""
        return bool(select.select([self.connection], [], [], 0)[0])

    def reply(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        pass
