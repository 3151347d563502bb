"""`make repair`: mends what `make verify` finds, as far as that can be done without a decision by a person.

What is to be mended is what breaks a rule of invariants.sql, and each is mended as the service itself would have done it, some
rows at a time, each time in a transaction of its own. A row that is right meanwhile is left alone, so that nothing happens twice.
"""

import os
import sys
from collections.abc import Callable
from itertools import batched
from typing import Any
from uuid import UUID, uuid4

import psycopg

from local.service import ServiceError
from local.verify import Invariant, database, invariants, reading
from shared import db
from shared.certificate import store as certificates
from shared.errors import Unavailable
from shared.quiz import regrades, service
from shared.quiz.attempts import RegradeBody

# What is due already and still not done is left as it is: that function does not run, and a new time would only hide it.

type Rows = tuple[dict[str, Any], ...]

#: Rows mended in one transaction.
BATCH = 500
ACTOR, REASON = "make repair", "Not all attempts had been graded by the present answer key."


def main(*, apply: bool) -> int:
    """Tell what can be mended, and with `apply` mend it; returns 0, or 2 if something could not be done."""
    try:
        # The service's own statements run where the service's own settings say.
        os.environ["DATABASE_URL"] = url = database()
        _, rules = invariants()
        with reading(url) as conn:
            found = {name: rules[name].broken(conn, None)[1] for name in REPAIRS}
        for name, rows in found.items():
            _mend(rules[name], tuple(rows), apply=apply)
    except (ServiceError, psycopg.Error, Unavailable) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    finally:
        db.close()
    if not apply and any(found.values()):
        print("Nothing was changed: make repair APPLY=1 does it.")
    print("make verify says what else is to be done, if anything is.")
    return 0


def _mend(rule: Invariant, rows: Rows, *, apply: bool) -> None:
    what, mend = REPAIRS[rule.name]
    if not rows:
        print(f"  {rule.name}: nothing to do")
        return
    print(f"  {rule.name}: {len(rows):,} broken; {'now' if apply else 'would'} {what}", flush=True)
    if apply:
        for some in batched(rows, BATCH, strict=False):
            mend(some)


def _keys(rows: Rows) -> list[tuple[UUID, UUID]]:
    return [(row["user_id"], row["course_version_id"]) for row in rows]


def _ids(rows: Rows, name: str = "id") -> list[Any]:
    return [row[name] for row in rows]


def _complete(rows: Rows) -> None:
    def write(conn: db.Connection) -> None:
        db.lock_enrollments(conn, _keys(rows))
        db.complete_enrollments(conn, _keys(rows))

    db.run(write)


def _date_completions(rows: Rows) -> None:
    def write(conn: db.Connection) -> None:
        db.lock_enrollments(conn, _keys(rows))
        conn.execute(
            """
            UPDATE enrollments e
            SET completed_at = i.fulfilled_at,
                status_changed_at = CASE e.status WHEN 'completed' THEN i.fulfilled_at ELSE e.status_changed_at END
            FROM unnest(%b::uuid[], %b::uuid[]) AS k (user_id, course_version_id)
            CROSS JOIN LATERAL (
                SELECT CASE WHEN bool_and(fulfilled_at IS NOT NULL) THEN max(fulfilled_at) END AS fulfilled_at
                FROM enrollment_items
                WHERE user_id = k.user_id AND course_version_id = k.course_version_id AND required
            ) i
            WHERE e.user_id = k.user_id AND e.course_version_id = k.course_version_id AND e.completed_at <> i.fulfilled_at
            """,
            db.columns(_keys(rows), 2),
        )

    db.run(write)


def _number_on(rows: Rows) -> None:
    given = [(row["user_id"], row["course_version_id"], row["given"]) for row in rows]

    def write(conn: db.Connection) -> None:
        db.lock_enrollments(conn, _keys(rows))
        conn.execute(
            """
            UPDATE enrollments e SET sequence = k.sequence
            FROM unnest(%b::uuid[], %b::uuid[], %b::bigint[]) AS k (user_id, course_version_id, sequence)
            WHERE e.user_id = k.user_id AND e.course_version_id = k.course_version_id AND e.sequence < k.sequence
            """,
            db.columns(given, 3),
        )

    db.run(write)


def _ask_for_certificates(rows: Rows) -> None:
    learners: dict[UUID, str | None] = {row["user_id"]: None for row in rows}
    db.run(lambda conn: certificates.request_missing(conn, learners))


def _make_parts(rows: Rows) -> None:
    db.run(
        lambda conn: conn.execute(
            """
            UPDATE certificates SET due_at = now(), tries = 0
            WHERE id = ANY(%b::uuid[]) AND num_nulls(pdf_url, credential, credential_jwt) > 0
                AND (due_at > now() - interval '10 minutes') IS NOT FALSE
            """,
            [_ids(rows)],
        )
    )


def _sign_lists(rows: Rows) -> None:
    def write(conn: db.Connection) -> None:
        conn.execute(
            """
            INSERT INTO status_lists AS l (number) SELECT number FROM unnest(%b::int[]) AS n (number) ORDER BY number
            ON CONFLICT (number) DO UPDATE SET due_at = now() WHERE (l.due_at > now()) IS NOT FALSE
            """,
            [sorted(_ids(rows, "number"))],
        )

    db.run(write)


def _grade_by_present_key(rows: Rows) -> None:
    quizzes = {(row["key_course_version_id"], row["quiz_id"]) for row in rows}
    body = RegradeBody(dry_run=False)
    for quiz in sorted(quizzes):
        regrade_id = uuid4()
        db.run(lambda conn: regrades.request(conn, regrade_id, *quiz, body, ACTOR, REASON))


def _regrade(rows: Rows) -> None:
    db.run(
        lambda conn: conn.execute(
            "UPDATE quiz_regrades SET leased_until = now() WHERE id = ANY(%b::uuid[]) AND completed_at IS NULL", [_ids(rows)]
        )
    )
    while job := db.run(regrades.lease).fetchone():
        while job:
            job = service.regrade(job)


def _close_attempts(rows: Rows) -> None:
    from functions.quiz_maintenance.app import sweep

    while sweep():
        pass


def _send_now(rows: Rows) -> None:
    db.run(
        lambda conn: conn.execute(
            """
            UPDATE outbox SET available_at = least(available_at, now()), deliveries = 0
            WHERE id = ANY(%b::uuid[]) AND sent_at IS NULL
            """,
            [_ids(rows)],
        )
    )


#: By rule: what is done, and how. In this order, since a completion makes a certificate due.
REPAIRS: dict[str, tuple[str, Callable[[Rows], None]]] = {
    "sequence_is_not_behind": ("go on numbering after the last number that was given away", _number_on),
    "grades_are_by_the_present_key": ("ask for the attempts to be graded again; passes are kept", _grade_by_present_key),
    "regrades_go_on": ("grade again until it is done", _regrade),
    "attempts_that_ran_out_are_closed": ("close and grade what was saved", _close_attempts),
    "fulfilled_enrolments_are_completed": ("complete them, and publish it", _complete),
    "completions_date_from_the_last_item": ("date the completions from their last items", _date_completions),
    "certificates_are_issued": ("ask certificate_worker for them", _ask_for_certificates),
    "certificates_get_their_parts": ("have certificate_worker try again now", _make_parts),
    "revocations_reach_the_status_lists": ("have certificate_worker sign them now", _sign_lists),
    "outbox_gets_through": ("have the relay try again now", _send_now),
    "outbox_comes_up": ("have the relay send them now", _send_now),
}
