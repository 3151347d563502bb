"""The certificate on paper, a PDF of one page, and the picture that goes with its link. Both are set by typst."""

import json
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from unicodedata import bidirectional, category, combining

import segno
import typst

from shared.certificate import texts
from shared.certificate.models import Certificate
from shared.certificate.rules import printable
from shared.observability import logger

_FOLDER = Path(__file__).parent
_FONT_PACKAGES = (
    "fontpkg_noto_serif",
    "fontpkg_noto_sans",
    "fontpkg_noto_sans_devanagari",
    "justmytype_intl_rtl",
    "justmytype_intl_sea",
    "justmytype_intl_cjk",
)
#: The first one that has a character draws it.
_FONTS = (
    "Noto Serif",
    "Noto Sans",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Sans Lao",
    "Noto Sans Khmer",
    "Noto Sans Myanmar",
)
#: Made by scripts/make_fallback_font.py: a box for each character there is.
_FALLBACK_FONT = "Certificate Fallback"
#: How its use is seen in a PDF, in which the names of fonts stand in plain text.
_FALLBACK_IN_PDF = re.compile(rb"/BaseFont\s*/[A-Z]{6}\+CertificateFallback")
#: And in an SVG: by the box's outline, whose upper edge has a needless point in its middle.
_FALLBACK_IN_SVG = re.compile(rb"v ([\d.]+)h ([\d.]+)h \2v -\1h -")

#: Where paper is of the size US Letter: CLDR's supplemental data, `paperSize`.
_LETTER_TERRITORIES = frozenset(["BZ", "CA", "CL", "CO", "CR", "GT", "MX", "NI", "PA", "PH", "PR", "SV", "US", "VE"])

#: How many marks and joiners a syllable has at most: no language needs as many, more would tower over the page, and typst's
#: shaper gives up on syllables of 256 characters.
_MARKS = 10
_MARK_CATEGORIES = frozenset(["Mn", "Mc", "Me", "Cf"])
#: The canonical combining class of the marks that join a letter with the next one into a syllable (Unicode: virama).
_JOINING_CLASS = 9


def pdf(certificate: Certificate, locale: str | None) -> bytes:
    """The certificate as PDF/UA-1 of one page, for a learner of this locale (BCP 47; None if unknown).

    The locale decides on the language, on A4 or US Letter, and on the shapes of Chinese characters. Whatever the name and the
    titles are, it comes out: too long ones are set smaller, then cut; characters that no font has are drawn as boxes, yet can
    be copied, and a warning with the certificate's uid is logged. Equal arguments give equal bytes.
    """
    language = texts.choose(None, locale)
    words = texts.texts(language)["document"]
    facts = [
        (words["version"], certificate.version),
        (words["completed"], texts.date(language, certificate.completed_at)),
        (words["issued"], texts.date(language, certificate.issued_at)),
    ]
    if certificate.expires_at is not None:
        facts.append((words["expires"], texts.date(language, certificate.expires_at)))
    if certificate.score is not None:
        facts.append((words["score"], words["percent"].format(number=texts.number(language, certificate.score))))
    revoked = None
    if certificate.revoked_at is not None:
        revoked = {
            "mark": words["revoked_mark"],
            "title": words["revoked"].format(date=texts.date(language, certificate.revoked_at)),
            "reason": _text(certificate.revocation_reason or ""),
        }
    data: dict[str, Any] = _data(certificate, language, locale) | {
        "paper": "us-letter" if _territory(locale) in _LETTER_TERRITORIES else "a4",
        "texts": words | {"code": words["code"].format(url=certificate.url)},
        "facts": [{"label": label, "value": _text(value)} for label, value in facts],
        "revoked": revoked,
        "url": certificate.url,
        "uid": certificate.certificate_uid,
        "code": _code(certificate.url),
    }
    outlined = [key for key in ("name", "title", "issuer") if _needs_outlines(data[key]["text"])]
    drawings = _compiled(certificate, "svg", data | {"kind": "outlines", "outlined": outlined}) if outlined else []
    data["outlines"] = {key: drawing.decode() for key, drawing in zip(outlined, drawings, strict=True)}
    (document,) = _compiled(certificate, "pdf", data | {"kind": "certificate"})
    if _FALLBACK_IN_PDF.search(document) or any(_FALLBACK_IN_SVG.search(drawing) for drawing in drawings):
        logger.warning("No font has all characters of a certificate", certificate_uid=certificate.certificate_uid)
    return document


def picture(certificate: Certificate, language: str) -> bytes:
    """A PNG of 1200 by 630 pixels with the name, the course and what is to be said of its state, in one of `texts.LANGUAGES`.

    Other sites keep such pictures, so that it never says that a certificate is simply valid.
    """
    words = texts.texts(language)["document"]
    if certificate.revoked_at is not None:
        state = words["revoked"].format(date=texts.date(language, certificate.revoked_at))
    elif certificate.expires_at is None:
        state = ""
    else:
        form = words["expired"] if certificate.status == "expired" else words["expires"] + " {date}"
        state = form.format(date=texts.date(language, certificate.expires_at))
    data = {"kind": "picture", "paper": "a4", "texts": words, "status": certificate.status, "state": state}
    (drawn,) = _compiled(certificate, "png", _data(certificate, language, language) | data)
    return drawn


def _data(certificate: Certificate, language: str, locale: str | None) -> dict[str, Any]:
    """What the document and the picture need alike."""
    name, title = _text(certificate.learner_name), _text(certificate.course_title)
    return {
        "language": language,
        "fonts": [*_FONTS, *_cjk_fonts(locale), _FALLBACK_FONT],
        "name": name,
        "title": title,
        "issuer": _text(certificate.issuer_name),
        "document_title": f"{texts.texts(language)['document']['heading']}: {title['text']}, {name['text']}",
    }


def _compiled(certificate: Certificate, form: Literal["pdf", "png", "svg"], data: dict[str, Any]) -> list[bytes]:
    """What typst makes of the template: one PDF, or one image for each page."""
    try:
        compiled = _compiler().compile(
            format=form,
            # Each point of the picture is two pixels.
            ppi=144,
            sys_inputs={"data": json.dumps(data)},
            pdf_standards=["ua-1"] if form == "pdf" else [],
            timestamp=int(certificate.issued_at.timestamp()),
        )
    except BaseException as error:
        # A panic in typst is no Exception to Python, and would take the neighbours in a batch along.
        if type(error).__name__ == "PanicException":
            raise RuntimeError("typst panicked over a certificate") from error
        raise
    return compiled if isinstance(compiled, list) else [compiled or b""]


@cache
def _compiler() -> typst.Compiler:
    # The folders are looked up without importing the packages, which would read all they know about their fonts.
    folders = [folder for package in _FONT_PACKAGES for folder in _folders(package)]
    fonts = typst.Fonts(include_system_fonts=False, include_embedded_fonts=False, font_paths=[*folders, str(_FOLDER / "fonts")])
    return typst.Compiler(_FOLDER / "document.typ", root=_FOLDER, font_paths=fonts)


def _folders(package: str) -> list[str]:
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"The fonts of {package} are not installed", name=package)
    return list(spec.submodule_search_locations)


def _text(text: str) -> dict[str, Any]:
    """What is drawn of a text, in the form that the template takes."""
    drawn: list[str] = []
    marks = 0
    for character in printable(text):
        if category(character) in _MARK_CATEGORIES:
            marks += 1
            if marks > _MARKS:
                continue
        elif not (drawn and combining(drawn[-1]) == _JOINING_CLASS):
            marks = 0
        drawn.append(character)
    # The first character that has a direction gives it to the whole (Unicode Standard Annex 9, rules P2 and P3).
    directions = (bidirectional(character) for character in drawn)
    direction = next((found for found in directions if found in {"L", "R", "AL"}), "L")
    shown = "".join(drawn)
    return {"text": shown, "rtl": direction != "L", "extracted": _as_extracted(shown)}


def _needs_outlines(text: str) -> bool:
    """Whether a program would not extract this text from its glyphs: they are not simply one after the other, for it has
    marks or is written from right to left, or a hyphen at its end would be taken for that of a word that goes on."""
    return text.endswith("-") or any(category(c) in {"Mn", "Mc", "Me"} or bidirectional(c) in {"R", "AL"} for c in text)


def _as_extracted(text: str) -> str:
    """A text in the order in which its characters lie on the page from left to right, as programs expect them that extract it.

    They turn around each run that starts with a character written from right to left and ends before one that is not or that
    belongs to numbers; marks and other punctuation are turned with it. The mark U+200F makes the run start there even where
    its last character is such a mark, U+200E follows a hyphen so that it stays, and U+202D keeps typst from turning anything
    around by itself.
    """
    runs: list[str] = []
    run = ""
    for character in text:
        direction = bidirectional(character)
        if direction in {"R", "AL"} or (run and direction not in {"L", "EN", "AN", "ES", "ET", "CS"}):
            run = character + run
        else:
            runs += ["\u200f" + run if run else "", character]
            run = ""
    return "\u202d" + "".join(runs) + ("\u200f" + run if run else "") + ("\u200e" if text.endswith("-") else "")


def _code(url: str) -> str:
    """The QR code of an address, as SVG. Level M survives a crease through 15 % of it; the paper around it is its margin."""
    return segno.make_qr(url, error="m", boost_error=False).svg_inline(border=0, dark="#1c2b3a")


def _subtags(locale: str | None) -> list[str]:
    return (locale or "").replace("_", "-").lower().split("-")


def _territory(locale: str | None) -> str | None:
    """The territory of a locale, in capitals: "US" of "en-US" or "en-Latn-US"."""
    return next((tag.upper() for tag in _subtags(locale)[1:] if re.fullmatch("[a-z]{2}", tag)), None)


def _cjk_fonts(locale: str | None) -> list[str]:
    """The fonts of Chinese, Japanese and Korean, first the one with the shapes of characters that the locale is used to."""
    tags = _subtags(locale)
    if tags[0] == "ja":
        order = "JP SC TC KR"
    elif tags[0] == "ko":
        order = "KR SC TC JP"
    elif tags[0] == "zh" and {"hant", "tw", "hk", "mo"} & set(tags):
        order = "TC SC JP KR"
    else:
        order = "SC TC JP KR"
    return [f"Noto Sans {script}" for script in order.split()]
