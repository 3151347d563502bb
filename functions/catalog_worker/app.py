"""What the Course and IAM services tell us: course versions, and the names of learners."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import AfterValidator, BaseModel, StringConstraints

from shared import db, messages
from shared.catalog import store
from shared.catalog.models import CourseVersion
from shared.certificate import store as certificates
from shared.errors import CourseVersionChanged, ServiceError
from shared.observability import observed
from shared.parsing import Text, storable, taken_as


class LearnerUpdated(BaseModel):
    """Data of `learner.updated`."""

    user_id: UUID
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500), AfterValidator(storable)]
    locale: Annotated[Text, StringConstraints(max_length=35)] | None = None


MODELS = {"course_version.published": CourseVersion, "learner.updated": LearnerUpdated}


def take(incoming: list[messages.Incoming[Any]]) -> dict[int, ServiceError]:
    """Store all of it in one transaction; another body under the id of a published course version is refused."""
    now = datetime.now(UTC)
    versions: dict[int, CourseVersion] = {}
    updates: list[store.LearnerUpdate] = []
    for n, item in enumerate(incoming):
        data = item.event.data
        if isinstance(data, CourseVersion):
            versions[n] = data
        else:
            updates.append(store.LearnerUpdate(data.user_id, data.name, data.locale, taken_as(item.event.time, now)))
    first = {version.course_version_id: version for version in reversed(versions.values())}

    def write(conn: db.Connection) -> Any:
        if updates:
            store.update_learners(conn, updates)
            certificates.request_missing(conn, {update.user_id for update in updates})
        if first:
            store.publish(conn, list(first.values()))
        return store.digests(conn, list(first))

    stored = dict(db.run(write).fetchall())
    return {
        n: CourseVersionChanged() for n, version in versions.items() if stored[version.course_version_id] != store.digest(version)
    }


@observed()
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    return messages.work("catalog", event, MODELS, take, exact_numbers=True)
