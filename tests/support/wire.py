"""A TCP proxy before PostgreSQL that counts round trips and statements, and notes their texts."""

import contextlib
import selectors
import socket
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit


@dataclass
class Wire:
    """What went over the wire since `reset`.

    A trip is one change of direction from the server back to the client once that has said that it waits (Sync or Query): a
    long answer may set out while the client's Sync is still on its way, which costs nobody any time. A statement is a Query
    ('Q') or an Execute ('E') message of PostgreSQL's protocol, which BEGIN and COMMIT are too. The texts are those of Query and
    Parse ('P').
    """

    url: str = ""
    trips: int = 0
    statements: int = 0
    texts: list[str] = field(default_factory=list[str])

    def reset(self) -> None:
        """Start counting anew."""
        self.trips = self.statements = 0
        self.texts = []


@contextlib.contextmanager
def counted(database_url: str) -> Generator[Wire]:
    """Yield a Wire whose URL leads to the same database through the counting proxy."""
    parts = urlsplit(database_url)
    target = (parts.hostname or "127.0.0.1", parts.port or 5432)
    listener = socket.create_server(("127.0.0.1", 0))
    wire = Wire(urlunsplit(parts._replace(netloc=f"{parts.username or 'postgres'}@127.0.0.1:{listener.getsockname()[1]}")))
    if parts.username is None:
        wire.url = urlunsplit(parts._replace(netloc=f"127.0.0.1:{listener.getsockname()[1]}"))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=_relay, args=(client, socket.create_connection(target), wire), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield wire
    finally:
        listener.close()


def _relay(client: socket.socket, server: socket.socket, wire: Wire) -> None:
    """Pass bytes on both ways; the client's messages are taken apart to count them."""
    pending = b""
    startup = True
    client_speaks = False
    with selectors.DefaultSelector() as selector, client, server, contextlib.suppress(ConnectionError):
        selector.register(client, selectors.EVENT_READ)
        selector.register(server, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is client:
                    data = client.recv(1 << 16)
                    server.sendall(data)
                    pending += data
                    while len(pending) >= 5:
                        # Startup messages have no type byte; those that ask for TLS or GSSAPI are followed by another one.
                        length = int.from_bytes(pending[:4]) if startup else 1 + int.from_bytes(pending[1:5])
                        if len(pending) < length:
                            break
                        wire.statements += not startup and pending[:1] in b"QE"
                        if not startup and pending[:1] in b"QP":
                            # A Query is its text; in a Parse the statement's name stands before it.
                            wire.texts.append(pending[5:length].split(b"\0")[pending[:1] == b"P"].decode())
                        client_speaks |= startup or pending[:1] in b"QSp"
                        startup = startup and int.from_bytes(pending[4:8]) in (80877103, 80877104)
                        pending = pending[length:]
                else:
                    data = server.recv(1 << 16)
                    # The first bytes of an answer end a trip.
                    wire.trips += client_speaks
                    client_speaks = False
                    client.sendall(data)
                if not data:
                    return
