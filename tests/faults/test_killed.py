"""A function that is killed at any of its transactions, before it is done or after, and is invoked again.

`FAULTS=all` kills before each transaction as well as after each.
"""

import json
import os
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from shared import db
from tests.faults import scenes
from tests.faults.conftest import note
from tests.support import whole
from tests.support.processes import Invocation, Processes, processes
from tests.support.service import Service, record
from tests.support.wire import Fault, Wire


@pytest.fixture(scope="module")
def parent(stage: tuple[Service, Wire]) -> Iterator[Processes]:
    with processes() as parent:
        yield parent


class Recorder(Service):
    """Takes down what would be invoked, once it is told to."""

    taken: tuple[str, dict[str, Any]] | None = None
    records = False

    def invoke(self, function: str, payload: dict[str, Any]) -> dict[str, Any]:
        if not self.records:
            return super().invoke(function, payload)
        self.taken = function, payload
        return {"batchItemFailures": []}


@pytest.mark.parametrize("operation", scenes.QUEUES, ids=str)
def test_a_worker_killed_at_any_transaction_and_invoked_again_ends_as_if_undisturbed(
    stage: tuple[Service, Wire], parent: Processes, operation: scenes.Operation
):
    service, wire = stage
    recorder = Recorder(service.database_url)

    def after(fault: Fault | None, transactions: int) -> dict[str, Any]:
        scene = scenes.Scene(recorder)
        operation.before(scene)
        recorder.records = True
        operation.act(scene)
        recorder.records = False
        assert recorder.taken
        function, payload = recorder.taken
        # Two things more in the same batch: what can't be read, and the same message once more.
        payload["Records"] += [record(f"no json {scene.user}"), payload["Records"][0]]
        if fault:
            started: SimpleQueue[Invocation] = SimpleQueue()
            wire.fail(fault, transactions, on_fault=lambda: started.get().kill())
            invocation = parent.start(function, payload)
            started.put(invocation)
            outcome = invocation.outcome()
            wire.fault = None
            assert outcome == ({"signal": 9} if wire.has_failed else {"result": {"batchItemFailures": []}})
        service.invoke(function, payload)
        operation.later(scene)
        return scene.footprint()

    expected = after(None, 0)
    assert json.dumps(expected).count("malformed") == 1
    faults: list[Fault] = ["cut before", "answer lost"]
    for fault in faults:
        transactions = 0
        while True:
            seen = after(fault, transactions)
            assert seen == expected, (fault, transactions)
            if not wire.has_failed:
                break
            note(f"killed, {'before' if fault == 'cut before' else 'after'} commit", operation.name)
            transactions += 1
            # What was not begun is for the database what comes after the end of the one before.
            if fault == "cut before" and os.environ.get("FAULTS") != "all":
                break
        assert transactions > 0
    assert whole.broken(service) == {}
    db.close()
