"""The SQL of rosters, and of the service's health."""

from uuid import UUID

from psycopg import Cursor
from psycopg.rows import class_row

from shared.db import Connection
from shared.enrollment.models import Enrollment, Status


def course_version_exists(conn: Connection, course_version_id: UUID) -> Cursor[tuple[int]]:
    """A row if the course version was published."""
    return conn.execute("SELECT 1 FROM course_versions WHERE course_version_id = %s", [course_version_id])


def roster(
    conn: Connection, course_version_id: UUID, status: Status | None, after: UUID | None, limit: int
) -> Cursor[Enrollment]:
    """The enrolments in a course version by user_id, from behind the key `after`."""
    return conn.cursor(row_factory=class_row(Enrollment)).execute(
        """
        SELECT user_id, course_version_id, status, enrolled_at, completed_at, source_of_enrollment, status_changed_at,
        status_reason
        FROM enrollments
        WHERE course_version_id = %(course_version_id)b AND (%(status)s::text IS NULL OR status = %(status)s)
            AND (%(after)b::uuid IS NULL OR user_id > %(after)b::uuid)
        ORDER BY user_id LIMIT %(limit)s
        """,
        {"course_version_id": course_version_id, "status": status, "after": after, "limit": limit},
        binary=True,
    )


def schema_version(conn: Connection) -> Cursor[tuple[str]]:
    """The migration that was applied last."""
    return conn.execute("SELECT migration_id FROM _yoyo_migration ORDER BY migration_id DESC LIMIT 1")
