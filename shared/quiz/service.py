"""What more than one trigger does with quizzes: grading again, by a request of an administrator and in the background."""

import itertools
from dataclasses import replace
from typing import Any
from uuid import UUID

import simplejson

from shared import db
from shared.observability import count
from shared.quiz import regrades, rules, store

#: At most so many learners in a step, and so many questions graded: a second or two of work.
_LEARNERS = 500
_QUESTIONS = 50_000


def _whole_learners(attempts: list[regrades.Graded], most: int) -> list[regrades.Graded]:
    """The attempts of the first learners: as many as come to `most` attempts, but of one learner all."""
    ends = [
        n
        for n, (one, following) in enumerate(itertools.pairwise(attempts), 1)
        if (one.user_id, one.course_version_id) != (following.user_id, following.course_version_id)
    ]
    if len(attempts) <= most or not ends:
        return attempts
    return attempts[: max((n for n in ends if n <= most), default=ends[0])]


def regrade(job: regrades.Job) -> regrades.Job | None:
    """Take the next step of a regrade; gives the regrade as it stands then, None once there is nothing to be done for now."""
    quiz = (job.course_version_id, job.quiz_id)
    key = store.answer_keys([quiz], stale=[quiz])[quiz]
    learners = max(1, min(_LEARNERS, _QUESTIONS // len(key.questions)))
    attempts = db.run(lambda conn: regrades.due(conn, job, key.key_version, learners)).fetchall()
    if not attempts:
        again = db.run(lambda conn: regrades.finish(conn, job, key.key_version)).fetchone()
        return replace(job, after_user_id=None, after_course_version_id=None) if again and again[0] else None
    attempts = _whole_learners(attempts, _QUESTIONS // len(key.questions))
    regraded: list[regrades.Regraded] = []
    gained: set[tuple[UUID, UUID]] = set()
    lost: set[tuple[UUID, UUID]] = set()
    for attempt in attempts:
        answers = simplejson.loads(attempt.answers, use_decimal=True)
        grade = rules.grade(key.questions, answers, attempt.pass_threshold_percentage)
        if grade.is_passed and not attempt.is_passed:
            gained.add((attempt.user_id, attempt.course_version_id))
        elif attempt.is_passed and not grade.is_passed:
            lost.add((attempt.user_id, attempt.course_version_id))
        results = simplejson.dumps(grade.question_results)
        regraded.append(
            regrades.Regraded(attempt.id, attempt.key_version, attempt.pass_kept, grade.score, grade.is_passed, results)
        )
    last = attempts[-1]

    def write(conn: db.Connection) -> Any:
        db.lock_enrollments(conn, {(attempt.user_id, attempt.course_version_id) for attempt in attempts})
        taken = regrades.step(conn, job, last, key.key_version, regraded)
        if lost and job.take_away and not job.dry_run:
            regrades.take_completion_back(conn, sorted(lost), job.quiz_id, job.actor, job.reason)
        if gained and not job.dry_run:
            db.complete_enrollments(conn, gained)
        return taken

    if not db.run(write).fetchone():
        # Someone else took this step, or the key was corrected just now: what is to be done next is in the database.
        return db.run(lambda conn: regrades.unfinished(conn, job.id)).fetchone()
    if not job.dry_run:
        count("QuizzesRegraded", len(regraded))
    return replace(job, after_user_id=last.user_id, after_course_version_id=last.course_version_id)
