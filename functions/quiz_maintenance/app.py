"""What becomes of quizzes by itself: attempts that ran out are closed, and after a correction attempts are graded again."""

import time
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from shared import db
from shared.observability import count, observed
from shared.quiz import regrades, service, store

#: Attempts closed at a time.
CLOSED = 200
#: Seconds between two looks when there is nothing to do.
POLL_SECONDS = 1.0
#: The loop ends this long before Lambda would end it; a step of a regrade takes a second or two.
MARGIN_MILLISECONDS = 15_000


@observed()
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Do what is due until the invocation's time is nearly over; the next one, a minute after this one's start, goes on."""
    closed = steps = 0
    job: regrades.Job | None = None
    while context.get_remaining_time_in_millis() > MARGIN_MILLISECONDS:
        swept = sweep()
        closed += swept
        job = job or db.run(regrades.lease).fetchone()
        if job:
            job = service.regrade(job)
            steps += 1
        elif not swept:
            time.sleep(POLL_SECONDS)
    return {"closed": closed, "steps": steps}


def sweep() -> int:
    """Close attempts whose time is over, with the answers saved before; gives how many there were."""
    attempts = db.run(lambda conn: store.run_out(conn, CLOSED)).fetchall()
    if not attempts:
        return 0
    quizzes = {(attempt.course_version_id, attempt.quiz_id) for attempt in attempts}
    keys = store.answer_keys(quizzes, stale=quizzes)
    closings = [
        store.closing(
            attempt.id,
            store.loads_answers(attempt.saved_answers),
            keys[attempt.course_version_id, attempt.quiz_id],
            in_time=False,
        )
        for attempt in attempts
    ]
    enrollments = {(attempt.user_id, attempt.course_version_id) for attempt in attempts}

    def write(conn: db.Connection) -> Any:
        db.lock_enrollments(conn, enrollments)
        closed = store.close(conn, closings)
        db.complete_enrollments(conn, enrollments)
        return closed

    closed = len(db.run(write).fetchall())
    count("QuizzesGraded", closed)
    return closed
