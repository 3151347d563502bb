"""The service at an address of its own, as strangers reach it: HTTP in front of the real handlers."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from shared import db
from tests.support.service import Service


@contextmanager
def served(service: Service, server: HTTPServer) -> Generator[None]:
    """Let a server that listens already answer strangers' requests, one after the other, by the service's handlers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = service.http("GET", place.path, sub=None, headers=headers, query=dict(parse_qsl(place.query)))
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    def serve() -> None:
        try:
            server.serve_forever(poll_interval=0.05)
        finally:
            db.close()

    server.RequestHandlerClass = Handler
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
