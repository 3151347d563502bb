"""The verification page: plain HTML from the server, which needs neither script nor anything from elsewhere."""

import hashlib
from base64 import b64encode
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlencode

from shared.certificate import texts
from shared.certificate.models import Certificate
from shared.certificate.rules import printable

if TYPE_CHECKING:
    from jinja2 import Template

_FOLDER = Path(__file__).parent
_STYLE = (_FOLDER / "page.css").read_text()

#: Nothing may be loaded but the page's own style sheet, which is recognised by its digest.
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

#: More requirements than this are folded up.
_MANY = 10


def of_certificate(certificate: Certificate, language: str) -> str:
    """The page of a certificate, in whatever state it is, in one of `texts.LANGUAGES`.

    It is the same for the same certificate, whenever it is made.
    """
    return _render(
        language,
        certificate.status,
        certificate=certificate,
        host=certificate.url.rsplit("/certificates/", 1)[0],
        many=len(certificate.criteria) > _MANY,
        linkedin=_linkedin(certificate) if certificate.status == "valid" else None,
    )


def of_unknown(problem: Literal["unknown", "mistyped"], language: str) -> str:
    """The page for a uid that belongs to no certificate: nobody was given it, or its check character does not fit."""
    return _render(language, problem, certificate=None)


def _render(language: str, state: str, **values: Any) -> str:
    return _template().render(
        style=_STYLE,
        language=language,
        t=texts.texts(language)["page"],
        state=state,
        date=partial(texts.date, language),
        number=partial(texts.number, language),
        **values,
    )


@cache
def _template() -> "Template":
    # Of the requests to its function only some ask for a page; the others start without it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = _shown
    return environment.get_template("page.html.jinja")


def _shown(text: str) -> str:
    """What someone else wrote, as it may stand in the page; a dash where nothing is left of it."""
    return printable(text) or "—"


def _linkedin(certificate: Certificate) -> str:
    """The address at which LinkedIn offers its member to add the certificate (https://addtoprofile.linkedin.com)."""
    fields: dict[str, object] = {
        "startTask": "CERTIFICATION_NAME",
        "name": _shown(certificate.course_title),
        "organizationName": _shown(certificate.issuer_name),
        "issueYear": certificate.issued_at.year,
        "issueMonth": certificate.issued_at.month,
    }
    if certificate.expires_at:
        fields |= {"expirationYear": certificate.expires_at.year, "expirationMonth": certificate.expires_at.month}
    fields |= {"certUrl": certificate.url, "certId": certificate.certificate_uid}
    return "https://www.linkedin.com/profile/add?" + urlencode(fields, quote_via=quote)
