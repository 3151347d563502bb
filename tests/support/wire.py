"""A TCP proxy before PostgreSQL that counts trips and statements, notes their texts, and can fail in the ways of a network."""

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

#: What happens to a transaction: it never reaches the server; it is done, and its answer, or the end of it, does not come back,
#: since the connection is reset; its statements are answered, and the connection ends before it is committed; or nothing is cut
#: and nobody ever answers, before it is done or after.
Fault = Literal["cut before", "answer lost", "answer cut", "commit lost", "silent before", "silent after"]

#: What asks for the end of a transaction, and what merely asks for the answers so far.
_SYNC, _FLUSH = b"S\x00\x00\x00\x04", b"H\x00\x00\x00\x04"

#: The server waits for what comes next: outside of BEGIN and COMMIT, whatever came before is committed. A status follows.
_READY = b"Z\x00\x00\x00\x05"


@dataclass
class Wire:
    """What went over the wire since `reset`, and what is to go wrong.

    A trip is one change of direction from the server back to the client once that has said that it waits (Sync or Query): a
    long answer may set out while the client's Sync is still on its way, which costs nobody any time. A statement is a Query
    ('Q') or an Execute ('E') message of PostgreSQL's protocol, which BEGIN and COMMIT are too. The texts are those of Query and
    Parse ('P').
    """

    url: str = ""
    #: Where the server is.
    target: tuple[str, int] = ("", 0)
    trips: int = 0
    statements: int = 0
    texts: list[str] = field(default_factory=list[str])
    #: What goes wrong once so many transactions went well, with that one alone; None: nothing.
    fault: Fault | None = None
    after: int = 0
    #: Whether it went wrong.
    has_failed: bool = False
    #: Whether connections are taken in and nobody speaks to them.
    is_deaf: bool = False
    #: Called at the moment at which it goes wrong.
    on_fault: Callable[[], object] = lambda: None

    def reset(self) -> None:
        """Start counting anew."""
        self.trips = self.statements = 0
        self.texts = []

    def fail(self, fault: Fault, after: int = 0, on_fault: Callable[[], object] = lambda: None) -> None:
        """Let one transaction go wrong, after so many."""
        self.fault, self.after, self.on_fault, self.has_failed = fault, after, on_fault, False

    def due(self) -> Fault | None:
        """What is to go wrong with the transaction that a client has just sent."""
        self.after -= self.fault is not None
        if self.fault is None or self.after >= 0:
            return None
        fault, self.fault, self.has_failed = self.fault, None, True
        return fault


@contextlib.contextmanager
def counted(database_url: str) -> Generator[Wire]:
    """Yield a Wire whose URL leads to the same database through the counting proxy."""
    parts = urlsplit(database_url)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    user = parts.netloc.rpartition("@")[0] or "postgres"
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    wire = Wire(
        urlunsplit(parts._replace(netloc=f"{user}@{address}" if parts.username else address)),
        (parts.hostname or "127.0.0.1", parts.port or 5432),
    )

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=_relay, args=(client, wire), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield wire
    finally:
        listener.close()


def _relay(client: socket.socket, wire: Wire) -> None:
    """Pass bytes on both ways; the client's messages are taken apart to count them."""
    if wire.is_deaf:
        with client:
            _listen(client)
        return
    try:
        server = socket.create_connection(wire.target)
    except OSError:
        _reset(client)
        return
    pending = b""
    startup = True
    client_speaks = False
    fault: Fault | None = None
    with selectors.DefaultSelector() as selector, client, server, contextlib.suppress(ConnectionError):
        selector.register(client, selectors.EVENT_READ)
        selector.register(server, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is client:
                    data = client.recv(1 << 16)
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
                        if not startup and pending[:1] in b"QS":
                            fault = wire.due()
                        startup = startup and int.from_bytes(pending[4:8]) in (80877103, 80877104)
                        pending = pending[length:]
                    if fault == "cut before":
                        wire.on_fault()
                        _reset(client)
                        return
                    if fault == "silent before":
                        wire.on_fault()
                        _listen(client)
                        return
                    if fault == "commit lost":
                        wire.on_fault()
                        server.sendall(data.replace(_SYNC, _FLUSH))
                        server.settimeout(0.2)
                        with contextlib.suppress(TimeoutError):
                            while answer := server.recv(1 << 16):
                                client.sendall(answer)
                        return
                    server.sendall(data)
                else:
                    data = server.recv(1 << 16)
                    if fault:
                        _fail(fault, client, server, data, wire)
                        return
                    # The first bytes of an answer end a trip.
                    wire.trips += client_speaks
                    client_speaks = False
                    client.sendall(data)
                if not data:
                    return


def _fail(fault: Fault, client: socket.socket, server: socket.socket, answer: bytes, wire: Wire) -> None:
    """Let the server finish, and the client not hear of it."""
    while answer[-6:-1] != _READY and (more := server.recv(1 << 16)):
        answer += more
    if fault == "answer cut":
        client.sendall(answer[: len(answer) // 2])
    wire.on_fault()
    if fault == "silent after":
        _listen(client)
    else:
        _reset(client)


def _listen(client: socket.socket) -> None:
    """Take in whatever the client says, until it hangs up."""
    with contextlib.suppress(ConnectionError):
        while client.recv(1 << 16):
            pass


def _reset(client: socket.socket) -> None:
    """Close a connection by RST, as whoever does not know it any more would."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
