"""Every error that a caller may see, as one tree.

ServiceError
  x Malformed 400           BeyondLimits
  x Forbidden 403
  x NotFound 404            CourseVersionNotFound · EnrollmentNotFound · LessonNotFound · QuizNotFound · AttemptNotFound
                            RequirementNotFound · RegradeNotFound · CertificateNotFound · MistypedCertificateUid
                            StatusListNotFound · PathNotFound
  x Conflict 409            AlreadyCompleted · AlreadyRevoked · EnrollmentInactive · EnrollmentRevoked · NotRevoked
                            NoAttemptsLeft · RetryTooSoon · AttemptClosed · AttemptExpired · AttemptSetAside · AttemptIdTaken
                            CourseVersionChanged
  x UnsupportedMediaType 415
  x Invalid 422             FutureCommand
  x Unavailable 503         NotSignedYet · Busy

Over HTTP an error is a problem document (RFC 9457); on a queue it is the `code` and `reason` of a dead letter.
"""

from typing import Any, ClassVar, NamedTuple

from pydantic import ValidationError

#: Of the flaws of one input, so many are named.
MAX_FLAWS = 100


class Flaw(NamedTuple):
    """One thing wrong with an input: where (a JSON pointer as URI fragment, or `query/…`, `path/…`) and what was expected."""

    pointer: str
    detail: str


class ServiceError(Exception):
    """The request cannot be carried out."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "The request cannot be carried out"
    #: Whether time may cure it, so that a queue tries the event again before it gives up.
    may_be_cured: ClassVar[bool] = False
    #: Whether strangers ask for what this says is not there.
    is_public: ClassVar[bool] = False

    def __init__(self, detail: str | None = None) -> None:
        self.detail = detail or (type(self).__doc__ or "").strip()
        super().__init__(self.detail)

    @classmethod
    def code(cls) -> str:
        """The error's name for programs, in snake_case."""
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in cls.__name__).lstrip("_")


class Malformed(ServiceError):
    """The body is no JSON."""

    status = 400
    title = "Malformed request"


class BeyondLimits(Malformed):
    """The body is JSON, but deeper or with longer numbers than can be read."""

    @classmethod
    def code(cls) -> str:
        return Malformed.code()


class Forbidden(ServiceError):
    """The token lacks the scope that this needs."""

    status = 403
    title = "Forbidden"


class NotFound(ServiceError):
    """There is no such thing."""

    status = 404
    title = "Not found"


class PathNotFound(NotFound):
    """There is nothing at this path."""


class CourseVersionNotFound(NotFound):
    """The course version is not known."""

    may_be_cured = True


class EnrollmentNotFound(NotFound):
    """There is no enrolment of this learner in this course version."""

    may_be_cured = True


class LessonNotFound(NotFound):
    """The course version has no such lesson."""


class QuizNotFound(NotFound):
    """The course version has no such quiz."""


class AttemptNotFound(NotFound):
    """There is no such quiz attempt."""


class RequirementNotFound(NotFound):
    """The course version has no such lesson or quiz."""


class RegradeNotFound(NotFound):
    """There is no such regrade of this quiz."""


class CertificateNotFound(NotFound):
    """There is no certificate with this uid."""

    is_public = True


class MistypedCertificateUid(NotFound):
    """The check character does not fit: the certificate uid was mistyped."""

    title = "Mistyped certificate uid"
    is_public = True


class StatusListNotFound(NotFound):
    """There is no such status list."""

    is_public = True


class Conflict(ServiceError):
    """The present state does not allow it."""

    status = 409
    title = "Conflict"


class AlreadyCompleted(Conflict):
    """The enrolment is completed and can no longer be cancelled."""


class AlreadyRevoked(Conflict):
    """The enrolment was revoked by an administrator; only an administrator can reinstate it."""


class NotRevoked(Conflict):
    """The enrolment is not revoked, so there is nothing to reinstate."""

    # On a queue the revocation may still be on its way.
    may_be_cured = True


class EnrollmentInactive(Conflict):
    """The enrolment was cancelled or revoked before that time."""


class NoAttemptsLeft(Conflict):
    """All allowed attempts at this quiz are used."""


class RetryTooSoon(Conflict):
    """The delay between two attempts at this quiz has not passed."""


class AttemptClosed(Conflict):
    """The attempt is graded already, with other answers."""


class AttemptExpired(Conflict):
    """The time limit of the attempt has passed; answers are no longer taken."""


class AttemptSetAside(Conflict):
    """The enrolment was started over, and this attempt was set aside."""


class AttemptIdTaken(Conflict):
    """An attempt with this id exists, with other answers or of another learner."""


class CourseVersionChanged(Conflict):
    """A course version is immutable: another body was published under this id before."""


class UnsupportedMediaType(ServiceError):
    """The body must be JSON, sent as `content-type: application/json`."""

    status = 415
    title = "Unsupported media type"


class Invalid(ServiceError):
    """The input is not valid."""

    status = 422
    title = "Invalid input"

    def __init__(self, *flaws: Flaw) -> None:
        # A body may have a hundred thousand flaws, or a field whose name is as long as the body, and the answer has to fit too.
        self.flaws = [Flaw(_shortened(f.pointer), _shortened(f.detail)) for f in flaws[:MAX_FLAWS]]
        super().__init__("; ".join(f"{f.pointer}: {f.detail}" for f in self.flaws[:5]) + ("; …" if len(flaws) > 5 else ""))


def _shortened(text: str) -> str:
    return text if len(text) <= 1000 else text[:999] + "…"


class FutureCommand(Invalid):
    """A command may not be dated more than five minutes in the future."""


class Unavailable(ServiceError):
    """The database cannot be reached at the moment; try again in a few seconds."""

    status = 503
    title = "Temporarily unavailable"


class Busy(Unavailable):
    """Someone else is just changing the same and takes long about it; try again in a few seconds."""

    # On a queue this is about one event, while the database as such is there.
    may_be_cured = True


class NotSignedYet(Unavailable):
    """The certificate is issued, and its credential is being signed."""

    is_public = True


def pointer(location: tuple[int | str, ...]) -> str:
    """A JSON pointer (RFC 6901) as URI fragment, from the location that pydantic gives."""
    # Pydantic names the kind of a question in between, as if it were a field: questions, 0, single_choice, correct.
    location = tuple(
        part
        for n, part in enumerate(location)
        if not (n >= 2 and location[n - 2] == "questions" and isinstance(location[n - 1], int))
    )
    return "#" + "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def flaws(error: ValidationError) -> list[Flaw]:
    """What pydantic found, in words that never repeat the input, since that may be personal data."""
    return [Flaw(pointer(e["loc"]), explain(e)) for e in error.errors(include_url=False, include_input=False)]


#: Where pydantic's own words don't say what was expected, or speak of Python.
_EXPECTED = {
    "missing": "required",
    "string_unicode": "expected a text without unpaired surrogates",
    "extra_forbidden": "unknown field",
    "model_type": "expected an object",
    "model_attributes_type": "expected an object",
    "dict_type": "expected an object",
    "list_type": "expected a list",
    "string_type": "expected a text",
    "bool_type": "expected true or false",
    "float_type": "expected a number",
    "int_type": "expected a whole number",
    "decimal_type": "expected a number",
    "finite_number": "expected a finite number",
    "uuid_type": "expected a UUID",
    "uuid_parsing": "expected a UUID",
    "datetime_type": "expected a time such as 2026-01-31T09:30:00Z",
    "datetime_parsing": "expected a time such as 2026-01-31T09:30:00Z",
    "datetime_from_date_parsing": "expected a time such as 2026-01-31T09:30:00Z",
    "timezone_aware": "expected a time with its offset, such as 2026-01-31T09:30:00Z",
}


def explain(e: Any) -> str:
    """What was expected, for one of pydantic's error details (`type`, `msg`, `ctx`)."""
    if e["type"] == "value_error":
        return str(e["ctx"]["error"])
    limits = e.get("ctx", {})
    match e["type"]:
        case "string_too_short":
            return f"expected at least {limits['min_length']} character(s)"
        case "string_too_long":
            return f"expected at most {limits['max_length']} characters"
        case "too_long":
            return f"expected at most {limits['max_length']} items"
        case _:
            pass
    if e["type"] == "string_pattern_mismatch":
        return "expected a UUID, or me" if "me|" in e["ctx"]["pattern"] else "expected a text without U+0000"
    expected = _EXPECTED.get(e["type"])
    if expected:
        return expected
    message: str = e["msg"]
    return message.replace("Input should be", "expected").replace("'", "")
