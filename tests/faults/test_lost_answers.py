"""The connection breaks before a transaction is done, or after, when its answer is lost: what is repeated happens once."""

import os
from uuid import uuid4

import pytest

from shared import db
from tests.faults import scenes
from tests.faults.conftest import note
from tests.support import whole
from tests.support.service import Service
from tests.support.wire import Fault, Wire

#: The last two differ from an answer that is lost in psycopg alone, so that one operation is enough; `FAULTS=all` takes all.
FAULTS: list[Fault] = ["cut before", "answer lost"]
ALL_FAULTS: list[Fault] = [*FAULTS, "answer cut", "commit lost"]


@pytest.mark.parametrize("operation", scenes.HTTP + scenes.QUEUES + scenes.CLOCK, ids=str)
def test_whatever_is_repeated_because_its_answer_was_lost_is_done_once(stage: tuple[Service, Wire], operation: scenes.Operation):
    service, wire = stage

    def after(fault: Fault | None, transactions: int) -> dict[str, object]:
        scene = scenes.Scene(service)
        operation.before(scene)
        # What earlier scenes have left, which the clock would find first.
        service.rows(
            "UPDATE quiz_regrades SET completed_at = now() WHERE completed_at IS NULL AND course_version_id <> %s",
            scene.version["course_version_id"],
        )
        service.rows("UPDATE quiz_regrades SET leased_until = now() WHERE completed_at IS NULL")
        if fault:
            wire.fail(fault, transactions)
        operation.act(scene)
        wire.fault = None
        operation.later(scene)
        return scene.footprint()

    expected = after(None, 0)
    for fault in ALL_FAULTS if operation.name == "reset" or os.environ.get("FAULTS") == "all" else FAULTS:
        transactions = 0
        while True:
            seen = after(fault, transactions)
            if not wire.has_failed:
                break
            assert seen == expected, (fault, transactions)
            note(fault, operation.name)
            transactions += 1
        assert transactions > 0
    assert whole.broken(service) == {}


def test_what_the_code_itself_breaks_off_is_undone(stage: tuple[Service, Wire]):
    service, _ = stage
    learner = uuid4()

    def work(conn: db.Connection) -> None:
        conn.execute("INSERT INTO learners (user_id) VALUES (%s)", [learner])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        db.run(work)
    assert service.rows("SELECT 1 FROM learners WHERE user_id = %s", learner) == []
    assert db.run(lambda conn: conn.execute("SELECT 1")).fetchone() == (1,)
