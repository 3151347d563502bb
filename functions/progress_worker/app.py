"""Lesson progress from the queue: players and offline clients."""

from datetime import UTC, datetime
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from shared import db, messages
from shared.errors import ServiceError
from shared.observability import observed
from shared.parsing import taken_as
from shared.progress import store
from shared.progress.models import LessonProgressed

MODELS = {"lesson.progressed": LessonProgressed}


def take(incoming: list[messages.Incoming[LessonProgressed]]) -> dict[int, ServiceError]:
    """Merge all reports in one transaction and one trip."""
    now = datetime.now(UTC)
    reports = [
        store.Report(
            d.user_id, d.course_version_id, d.lesson_id, d.percentage, taken_as(item.event.time, now), item.event.traceparent
        )
        for item in incoming
        for d in [item.event.data]
    ]
    outcomes = db.run(lambda conn: store.record(conn, reports)).fetchall()
    return {o.n: store.REFUSED[o.outcome]() for o in outcomes if o.outcome != "unchanged"}


@observed()
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    return messages.work("progress", event, MODELS, take)
