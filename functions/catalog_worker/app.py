"""What the Course and IAM services tell us: course versions, corrected answer keys, and the names of learners."""

import json
from collections import defaultdict
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import AfterValidator, BaseModel, StringConstraints

from shared import db, messages
from shared.catalog import rules, store
from shared.catalog.models import AnswerKeyCorrected, CourseVersion
from shared.certificate import store as certificates
from shared.errors import CourseVersionChanged, CourseVersionNotFound, Invalid, QuizNotFound, ServiceError, Unavailable
from shared.observability import observed
from shared.parsing import Text, storable, taken_as
from shared.quiz.models import Question


class LearnerUpdated(BaseModel):
    """Data of `learner.updated`."""

    user_id: UUID
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500), AfterValidator(storable)]
    locale: Annotated[Text, StringConstraints(max_length=35)] | None = None


MODELS = {
    "course_version.published": CourseVersion,
    "quiz.answer_key_corrected": AnswerKeyCorrected,
    "learner.updated": LearnerUpdated,
}

type QuizId = tuple[UUID, UUID]
"""course_version_id, quiz_id."""


def take(incoming: list[messages.Incoming[Any]]) -> dict[int, ServiceError]:
    """Store all of it; course versions and names in one transaction, then the corrections of answer keys in another."""
    now = datetime.now(UTC)
    versions: dict[int, CourseVersion] = {}
    corrections: dict[QuizId, list[tuple[int, messages.Event[AnswerKeyCorrected]]]] = defaultdict(list)
    updates: list[store.LearnerUpdate] = []
    learners: dict[UUID, str | None] = {}
    for n, item in enumerate(incoming):
        data = item.event.data
        if isinstance(data, CourseVersion):
            versions[n] = data
        elif isinstance(data, AnswerKeyCorrected):
            corrections[data.course_version_id, data.quiz_id].append((n, item.event))
        else:
            updates.append(store.LearnerUpdate(data.user_id, data.name, data.locale, taken_as(item.event.time, now)))
            # Of several events on one learner, the first one's traceparent is handed on.
            learners.setdefault(data.user_id, item.event.traceparent)
    refused: dict[int, ServiceError] = {}
    if versions or updates:
        refused |= _publish(versions, updates, learners)
    if corrections:
        refused |= _correct(corrections, now)
    return refused


def _publish(
    versions: dict[int, CourseVersion], updates: list[store.LearnerUpdate], learners: dict[UUID, str | None]
) -> dict[int, ServiceError]:
    """Store course versions and names; another body under the id of a published course version is refused."""
    first = {version.course_version_id: version for version in reversed(versions.values())}

    def write(conn: db.Connection) -> Any:
        if updates:
            store.update_learners(conn, updates)
            certificates.request_missing(conn, learners)
        if first:
            store.publish(conn, list(first.values()))
        return store.digests(conn, list(first))

    stored = dict(db.run(write).fetchall())
    others = {n: version for n, version in versions.items() if stored[version.course_version_id] != rules.digest(version)}
    if not others:
        return {}
    keys: dict[UUID, dict[UUID, list[tuple[Question, ...]]]] = defaultdict(lambda: defaultdict(list))
    asked = {version.course_version_id for version in others.values()}
    for row in db.run(lambda conn: store.all_keys(conn, asked)).fetchall():
        keys[row.course_version_id][row.quiz_id].append(row.key().questions)
    return {
        n: CourseVersionChanged()
        for n, version in others.items()
        if not rules.is_the_same(version, stored[version.course_version_id], keys[version.course_version_id])
    }


def _correct(
    corrections: dict[QuizId, list[tuple[int, messages.Event[AnswerKeyCorrected]]]], now: datetime
) -> dict[int, ServiceError]:
    """Correct answer keys, each as it was read; one that another invocation corrected meanwhile is read and corrected again."""
    refused: dict[int, ServiceError] = {}
    pending = sorted(corrections)
    for _ in range(10):
        found: list[store.Correction] = []
        for row in db.run(lambda conn: store.present_keys(conn, pending)).fetchall():
            quiz = (row.course_version_id, row.quiz_id)
            if row.key_version is None:
                error = QuizNotFound() if row.course_version_is_known else CourseVersionNotFound()
                refused |= {n: error for n, _ in corrections[quiz]}
                continue
            key = before = row.key()
            for n, event in corrections[quiz]:
                # By a key that someone else corrected meanwhile it may come out otherwise than before.
                refused.pop(n, None)
                try:
                    key = rules.corrected(key, event.data, taken_as(event.time, now))
                except Invalid as error:
                    refused[n] = error
            if key != before:
                actor = corrections[quiz][0][1].source
                found.append(
                    store.Correction(*quiz, row.key_version, rules.as_json(key.questions), json.dumps(key.corrected), actor)
                )
        if not found:
            return refused
        pending = sorted(db.run(lambda conn: _write(conn, found)).fetchall())
        if not pending:
            return refused
    raise Unavailable


def _write(conn: db.Connection, found: list[store.Correction]) -> Any:
    store.lock_quizzes(conn, [correction[:2] for correction in found])
    return store.corrections(conn, found)


@observed()
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    return messages.work("catalog", event, MODELS, take, exact_numbers=True)
