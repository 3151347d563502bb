"""The peer that most teams would write: FastAPI, and SQLAlchemy's ORM or one statement, on the service's own tables.

Runs in the environment of this folder: .tools/peers/bin/python -m tests.bench.programs.fastapi_orm <URL of the database>.
"""

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from time import perf_counter
from typing import Annotated, Any
from uuid import UUID

from fastapi import Body, Depends, FastAPI, Header, HTTPException
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool
from pydantic import BaseModel, Field, TypeAdapter
from sqlalchemy import DateTime, create_engine, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from tests.bench.programs import child, workload

URL = sys.argv[1]
SQLALCHEMY_URL = URL.replace("postgresql:", "postgresql+psycopg:")


class Base(DeclarativeBase):
    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012 - As SQLAlchemy wants it.


class Enrollment(Base):
    __tablename__ = "enrollments"

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    course_version_id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[str]


class Lesson(Base):
    __tablename__ = "course_version_lessons"

    course_version_id: Mapped[UUID] = mapped_column(primary_key=True)
    lesson_id: Mapped[UUID] = mapped_column(primary_key=True)


class LessonProgress(Base):
    __tablename__ = "lesson_progress"

    user_id: Mapped[UUID] = mapped_column(primary_key=True)
    lesson_id: Mapped[UUID] = mapped_column(primary_key=True)
    enrolled_course_version_id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[str]
    progress_percentage: Mapped[float]
    started_at: Mapped[datetime]
    last_accessed_at: Mapped[datetime]
    completed_at: Mapped[datetime | None]

    def merge(self, percentage: float, when: datetime) -> None:
        """Take a report: progress only grows."""
        self.progress_percentage = max(self.progress_percentage, percentage)
        self.started_at = min(self.started_at, when)
        self.last_accessed_at = max(self.last_accessed_at, when)
        if percentage == 100:
            self.completed_at = min(self.completed_at or when, when)
        self.status = "completed" if self.completed_at else "in_progress"


class ReportBody(BaseModel):
    progress_percentage: float = Field(ge=0, le=100)
    occurred_at: datetime | None = None


class Progress(BaseModel, from_attributes=True):
    lesson_id: UUID
    status: str
    progress_percentage: float
    started_at: datetime
    last_accessed_at: datetime
    completed_at: datetime | None


def new(user_id: UUID, course_version_id: UUID, lesson_id: UUID, percentage: float, when: datetime) -> LessonProgress:
    progress = LessonProgress(
        user_id=user_id,
        lesson_id=lesson_id,
        enrolled_course_version_id=course_version_id,
        progress_percentage=0,
        started_at=when,
        last_accessed_at=when,
        completed_at=None,
    )
    progress.merge(percentage, when)
    return progress


def authorise(user_id: UUID, sub: Annotated[UUID, Header(alias="x-sub")]) -> UUID:
    """The gateway has verified the token and hands its subject on."""
    if user_id != sub:
        raise HTTPException(404)
    return user_id


Learner = Annotated[UUID, Depends(authorise)]
Reported = Annotated[ReportBody, Body()]
PATH = "/users/{user_id}/enrollments/{course_version_id}/lessons/{lesson_id}/progress"


def orm() -> FastAPI:
    """An app whose endpoint is synchronous, so that FastAPI runs it in a thread."""
    sessions = sessionmaker(create_engine(SQLALCHEMY_URL), expire_on_commit=False)
    app = FastAPI()

    def session() -> Iterator[Session]:
        with sessions() as session:
            yield session

    @app.put(PATH)
    def report(
        user_id: Learner, course_version_id: UUID, lesson_id: UUID, body: Reported, session: Annotated[Session, Depends(session)]
    ) -> Progress:
        enrollment = session.get(Enrollment, (user_id, course_version_id))
        if enrollment is None or session.get(Lesson, (course_version_id, lesson_id)) is None:
            raise HTTPException(404)
        if enrollment.status not in ("active", "completed"):
            raise HTTPException(409)
        when = body.occurred_at or datetime.now(UTC)
        progress = session.get(LessonProgress, (user_id, lesson_id, course_version_id), with_for_update=True)
        if progress is None:
            progress = new(user_id, course_version_id, lesson_id, body.progress_percentage, when)
            session.add(progress)
        else:
            progress.merge(body.progress_percentage, when)
        session.commit()
        return Progress.model_validate(progress)

    return app


def orm_async() -> FastAPI:
    """The same on the event loop."""
    sessions = async_sessionmaker(create_async_engine(SQLALCHEMY_URL), expire_on_commit=False)
    app = FastAPI()

    async def session() -> AsyncIterator[AsyncSession]:
        async with sessions() as session:
            yield session

    @app.put(PATH)
    async def report(
        user_id: Learner,
        course_version_id: UUID,
        lesson_id: UUID,
        body: Reported,
        session: Annotated[AsyncSession, Depends(session)],
    ) -> Progress:
        enrollment = await session.get(Enrollment, (user_id, course_version_id))
        if enrollment is None or await session.get(Lesson, (course_version_id, lesson_id)) is None:
            raise HTTPException(404)
        if enrollment.status not in ("active", "completed"):
            raise HTTPException(409)
        when = body.occurred_at or datetime.now(UTC)
        progress = await session.get(LessonProgress, (user_id, lesson_id, course_version_id), with_for_update=True)
        if progress is None:
            progress = new(user_id, course_version_id, lesson_id, body.progress_percentage, when)
            session.add(progress)
        else:
            progress.merge(body.progress_percentage, when)
        await session.commit()
        return Progress.model_validate(progress)

    return app


def statement() -> FastAPI:
    """One statement, which psycopg prepares once it has been used a few times."""
    pool = ConnectionPool(URL, min_size=1, kwargs={"autocommit": True, "row_factory": dict_row})

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with pool:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.put(PATH)
    def report(user_id: Learner, course_version_id: UUID, lesson_id: UUID, body: Reported) -> Progress:
        with pool.connection() as conn:
            row = conn.execute(
                """
                INSERT INTO lesson_progress AS p (
                    user_id, lesson_id, enrolled_course_version_id, status, progress_percentage, started_at, last_accessed_at,
                    completed_at
                )
                SELECT e.user_id, %(lesson_id)s, e.course_version_id,
                    CASE WHEN %(percentage)s::float8 = 100 THEN 'completed' ELSE 'in_progress' END, %(percentage)s,
                    %(when)s, %(when)s, CASE WHEN %(percentage)s::float8 = 100 THEN %(when)s::timestamptz END
                FROM enrollments e
                WHERE e.user_id = %(user_id)s AND e.course_version_id = %(course_version_id)s
                    AND e.status IN ('active', 'completed')
                ON CONFLICT ON CONSTRAINT pk_lesson_progress DO UPDATE SET
                    status = CASE WHEN 100 IN (p.progress_percentage, excluded.progress_percentage) THEN 'completed'
                        ELSE 'in_progress' END,
                    progress_percentage = greatest(p.progress_percentage, excluded.progress_percentage),
                    started_at = least(p.started_at, excluded.started_at),
                    last_accessed_at = greatest(p.last_accessed_at, excluded.last_accessed_at),
                    completed_at = least(p.completed_at, excluded.completed_at)
                RETURNING lesson_id, status, progress_percentage, started_at, last_accessed_at, completed_at
                """,
                {
                    "user_id": user_id,
                    "course_version_id": course_version_id,
                    "lesson_id": lesson_id,
                    "percentage": body.progress_percentage,
                    "when": body.occurred_at or datetime.now(UTC),
                },
            ).fetchone()
        if row is None:
            raise HTTPException(404)
        return Progress.model_validate(row)

    return app


class Requests:
    """Calls an app as its server would, without one: a request's scope in, all of the answer out."""

    def __init__(self, app: FastAPI, runner: asyncio.Runner) -> None:
        self._app, self._runner = app, runner
        self._reports = workload.reports(1)
        if app.router.lifespan_context:
            self._lifespan = app.router.lifespan_context(app)
            runner.run(self._lifespan.__aenter__())

    def __call__(self, calls: int) -> list[float]:
        return self._runner.run(self._calls(calls))

    async def _calls(self, calls: int) -> list[float]:
        seconds: list[float] = []
        for report in itertools.islice(self._reports, calls):
            path = PATH.format(user_id=report.user_id, course_version_id=workload.COURSE_VERSION, lesson_id=report.lesson_id)
            scope: dict[str, Any] = {
                "type": "http",
                "asgi": {"version": "3.0", "spec_version": "2.3"},
                "http_version": "1.1",
                "method": "PUT",
                "scheme": "http",
                "path": path,
                "raw_path": path.encode(),
                "root_path": "",
                "query_string": b"",
                "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"x-sub", report.user_id.encode())],
                "client": ("127.0.0.1", 50000),
                "server": ("127.0.0.1", 8000),
            }
            body = json.dumps({"progress_percentage": report.percentage}).encode()
            answered: list[dict[str, Any]] = []

            async def receive(body: bytes = body) -> dict[str, Any]:
                return {"type": "http.request", "body": body, "more_body": False}

            async def send(message: dict[str, Any], answered: list[dict[str, Any]] = answered) -> None:
                answered.append(message)

            began = perf_counter()
            await self._app(scope, receive, send)
            seconds.append(perf_counter() - began)
            assert answered[0]["status"] == 200, answered
        return seconds


class LessonProgressed(BaseModel):
    user_id: UUID
    course_version_id: UUID
    lesson_id: UUID
    progress_percentage: float = Field(ge=0, le=100)


class Event(BaseModel):
    id: str
    source: str
    type: str
    time: datetime
    data: LessonProgressed


EVENTS = TypeAdapter(list[Event])


class Batches:
    """Takes messages of 1,000 events on lessons begun, from their text to the commit."""

    def __init__(self) -> None:
        self._sessions = sessionmaker(create_engine(SQLALCHEMY_URL), expire_on_commit=False)
        self._lessons = itertools.cycle(range(workload.BEGUN))

    def _message(self, events: int) -> str:
        return json.dumps(workload.events(next(self._lessons))[:events])

    def each(self, events: int) -> list[float]:
        """Each event in a transaction of its own, as the endpoint does it; seconds of all of them."""
        text = self._message(events)
        began = perf_counter()
        for event in EVENTS.validate_json(text):
            d = event.data
            with self._sessions() as session:
                enrollment = session.get(Enrollment, (d.user_id, d.course_version_id))
                progress = session.get(LessonProgress, (d.user_id, d.lesson_id, d.course_version_id), with_for_update=True)
                if enrollment and progress:
                    progress.merge(d.progress_percentage, event.time)
                elif enrollment:
                    session.add(new(d.user_id, d.course_version_id, d.lesson_id, d.progress_percentage, event.time))
                session.commit()
        return [perf_counter() - began]

    def once(self, events: int) -> list[float]:
        """All events in one transaction: a query for the enrolments, one for the progress, one flush; seconds of all of them."""
        text = self._message(events)
        began = perf_counter()
        parsed = EVENTS.validate_json(text)
        with self._sessions() as session:
            keys = {(e.data.user_id, e.data.course_version_id) for e in parsed}
            found = select(Enrollment).where(tuple_(Enrollment.user_id, Enrollment.course_version_id).in_(keys))
            enrolled = {(e.user_id, e.course_version_id) for e in session.scalars(found)}
            lessons = {(e.data.user_id, e.data.lesson_id, e.data.course_version_id) for e in parsed}
            key = tuple_(LessonProgress.user_id, LessonProgress.lesson_id, LessonProgress.enrolled_course_version_id)
            rows = session.scalars(select(LessonProgress).where(key.in_(lessons)).with_for_update())
            known = {(p.user_id, p.lesson_id, p.enrolled_course_version_id): p for p in rows}
            for event in parsed:
                d = event.data
                if (d.user_id, d.course_version_id) not in enrolled:
                    continue
                if progress := known.get((d.user_id, d.lesson_id, d.course_version_id)):
                    progress.merge(d.progress_percentage, event.time)
                else:
                    progress = new(d.user_id, d.course_version_id, d.lesson_id, d.progress_percentage, event.time)
                    known[d.user_id, d.lesson_id, d.course_version_id] = progress
                    session.add(progress)
            session.commit()
        return [perf_counter() - began]


if __name__ == "__main__":
    with asyncio.Runner() as runner:
        batches = Batches()
        child.answer(
            {
                "ORM": Requests(orm(), runner),
                "ORM, async": Requests(orm_async(), runner),
                "one statement": Requests(statement(), runner),
                "batch, commit each": batches.each,
                "batch, one commit": batches.once,
            }
        )
