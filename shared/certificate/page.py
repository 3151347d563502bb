"""The verification page: plain HTML from the server, which needs neither script nor anything from elsewhere."""

import hashlib
from base64 import b64encode
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from shared.certificate.models import Certificate

_FOLDER = Path(__file__).parent
_STYLE = (_FOLDER / "page.css").read_text()

#: Nothing may be loaded but the page's own style sheet, which is recognised by its digest.
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def _template() -> Template:
    environment = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.jinja")


def of_certificate(certificate: Certificate) -> str:
    """The page of a certificate, in whatever state it is."""
    return _template().render(style=_STYLE, title=certificate.course_title, certificate=certificate, problem=None)


def of_unknown(title: str, detail: str) -> str:
    """The page for a uid that belongs to no certificate."""
    return _template().render(style=_STYLE, title=title, certificate=None, problem=detail)
