"""EventBridge and SQS as the relay sees them, as they may behave; and how long it works."""

import json
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tests.support.service import Context


class Laps(Context):
    """Lambda's context with time left for so many laps of the relay's loop."""

    def __init__(self, laps: int) -> None:
        super().__init__("OutboxRelay")
        self.laps = laps

    def get_remaining_time_in_millis(self) -> int:
        self.laps -= 1
        return 60_000 if self.laps >= 0 else 0


class Entry(NamedTuple):
    """What one entry of a call held."""

    destination: str
    id: str
    body: str
    trace: str | None = None


class FailingAws(ThreadingHTTPServer):
    """PutEvents and SendMessageBatch as a server that records, delays and refuses.

    `refuse` says of an entry whether it is refused; `on_call` runs while the relay waits for its answer.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.calls: list[list[Entry]] = []
        self.sizes: list[int] = []
        self.refuse: Callable[[Entry], bool] = lambda entry: False
        self.on_call: Callable[[list[Entry]], None] = lambda entries: None
        self.status = 200
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def sent(self) -> Counter[str]:
        """How often each body or event id came."""
        return Counter(entry.id for call in self.calls for entry in call)


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FailingAws  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        call = json.loads(text)
        to_bus = self.headers["X-Amz-Target"].endswith("PutEvents")
        if to_bus:
            entries = [
                Entry(e["EventBusName"], json.loads(e["Detail"])["id"], e["Detail"], e.get("TraceHeader"))
                for e in call["Entries"]
            ]
        else:
            name = call["QueueUrl"].rsplit("/", 1)[1]
            entries = [Entry(name, e["MessageBody"], e["MessageBody"]) for e in call["Entries"]]
        with self.server.lock:
            self.server.calls.append(entries)
            self.server.sizes.append(len(text))
        self.server.on_call(entries)
        refused = [self.server.refuse(entry) for entry in entries]
        if self.server.status != 200:
            answer: dict[str, Any] = {"__type": "com.amazonaws#InternalError", "message": "down"}
        elif to_bus:
            problem = {"ErrorCode": "ThrottlingException", "ErrorMessage": "slow down"}
            answer = {"FailedEntryCount": sum(refused), "Entries": [problem if no else {"EventId": "1"} for no in refused]}
        else:
            answer = {
                "Successful": [
                    {"Id": e["Id"], "MessageId": "1"} for e, no in zip(call["Entries"], refused, strict=True) if not no
                ],
                "Failed": [
                    {"Id": e["Id"], "Code": "InternalError", "Message": "try later", "SenderFault": False}
                    for e, no in zip(call["Entries"], refused, strict=True)
                    if no
                ],
            }
        body = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
