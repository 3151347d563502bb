"""The verification page: what it says in each state, and that nothing written by others can disturb it."""

import hashlib
import re
import tomllib
from base64 import b64encode
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from string import Formatter
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.certificate import page, texts
from shared.certificate.models import Certificate, Criterion
from shared.certificate.rules import printable

UID = "K7QM-3XVD-90TZ-W5HB-E2RC-8N4J"
URL = f"https://learn.example/certificates/{UID}"
EXPIRED: dict[str, Any] = {"status": "expired", "expires_at": datetime(2026, 2, 3, tzinfo=UTC)}
REVOKED: dict[str, Any] = {
    "status": "revoked",
    "revoked_at": datetime(2026, 5, 4, 23, 59, tzinfo=UTC),
    "revocation_reason": "Taken by another.",
}

#: Elements without an end (HTML standard, "void elements").
VOID = {"meta", "link"}


def certificate(**fields: Any) -> Certificate:
    """A valid certificate, but for these fields."""
    return Certificate.model_validate(
        {
            "certificate_uid": UID,
            "status": "valid",
            "learner_name": "Ada Lovelace",
            "course_title": "Reading maps",
            "version": "2026.1",
            "issuer_name": "Open College",
            "criteria": [],
            "score": 87.56,
            "completed_at": datetime(2026, 1, 2, 12, tzinfo=UTC),
            "issued_at": datetime(2026, 1, 31, tzinfo=UTC),
            "expires_at": None,
            "revoked_at": None,
            "revocation_reason": None,
            "url": URL,
        }
        | fields
    )


def criteria(lessons: int, quizzes: int) -> list[Criterion]:
    return [Criterion(kind="lesson", title=f"Lesson {n}", pass_threshold_percentage=None) for n in range(lessons)] + [
        Criterion(kind="quiz", title=f"Test {n}", pass_threshold_percentage=66.5) for n in range(quizzes)
    ]


class Parsed(HTMLParser):
    """A page taken apart: its elements in order, and the text in each."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.append((self._open[-1], data))

    def text(self) -> str:
        """What a reader sees, with white space folded."""
        return " ".join("".join(text for tag, text in self.texts if tag not in ("style", "title")).split())

    def isolated(self) -> list[str]:
        """What others wrote."""
        return [text for tag, text in self.texts if tag == "bdi"]

    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]

    def addresses(self) -> list[str]:
        """Where links of the text lead."""
        return [attributes["href"] or "" for tag, attributes in self.elements if tag == "a"]

    def meta(self) -> dict[str, str]:
        """The meta elements: property or name, and content."""
        metas = [attributes for tag, attributes in self.elements if tag == "meta"]
        return {(m.get("property") or m.get("name") or ""): m.get("content") or "" for m in metas}


def parsed(language: str = "en", **fields: Any) -> Parsed:
    return Parsed(page.of_certificate(certificate(**fields), language))


def linkedin(addresses: list[str]) -> list[str]:
    return [address for address in addresses if "linkedin" in address]


# States


def test_a_valid_certificate_says_what_it_certifies():
    shown = parsed(criteria=criteria(2, 1), expires_at=datetime(2029, 1, 31, tzinfo=UTC))
    text = shown.text()
    assert "Valid This certificate is genuine and has not been revoked. It is valid until 31 January 2029." in text
    for part in (
        "This certifies that Ada Lovelace has completed Reading maps",
        "Completed 2 January 2026",
        "Issued 31 January 2026",
        "Valid until 31 January 2029",
        "Score 87.5 of 100",
        "Course version 2026.1",
        "Issued by Open College",
        f"Certificate number {UID}",
        "2 lessons completed Lesson 0 Lesson 1 1 quiz passed Test 0 pass mark 66.5%",
    ):
        assert part in text
    assert {f"{URL}.pdf", f"{URL}.vc", f"{URL}.jwt"} <= set(shown.addresses())
    assert {f"https://learn.example/.well-known/{name}.json" for name in ("did", "jwks")} <= set(shown.addresses())


def test_german():
    shown = parsed("de", criteria=criteria(1, 2), expires_at=datetime(2029, 3, 31, tzinfo=UTC))
    assert shown.elements[0] == ("html", {"lang": "de"})
    for part in (
        "Gültig Dieses Zertifikat ist echt und wurde nicht widerrufen. Es gilt bis zum 31. März 2029.",
        "Dieses Zertifikat bescheinigt Ada Lovelace den Abschluss des Kurses Reading maps",
        "Punkte 87,5 von 100",
        "1 Lektion abgeschlossen Lesson 0 2 Tests bestanden Test 0 bestanden ab 66,5 %",
    ):
        assert part in shown.text()
    assert shown.meta()["og:locale"] == "de_DE"


def test_what_there_is_not_is_not_spoken_of():
    text = parsed(score=None).text()
    for word in ("Score", "Valid until", "It is valid until", "What was required", "Revoked", "Expired"):
        assert word not in text


def test_an_expired_one_says_since_when_and_is_not_for_a_profile():
    shown = parsed(**EXPIRED)
    assert "Expired This certificate is genuine, but was valid only until 3 February 2026." in shown.text()
    assert linkedin(shown.addresses()) == []
    assert f"{URL}.pdf" in shown.addresses()


@pytest.mark.parametrize("late", [{}, {"expires_at": datetime(2026, 2, 3, tzinfo=UTC)}])
def test_a_revoked_one_says_when_and_why_and_offers_no_document(late: dict[str, Any]):
    shown = parsed(**REVOKED | late)
    assert "Revoked This certificate was revoked on 4 May 2026." in shown.text()
    assert "Reason: Taken by another." in shown.text()
    assert "genuine" not in shown.text()
    assert linkedin(shown.addresses()) == []
    assert f"{URL}.pdf" not in shown.addresses()
    # That it is revoked can be checked as well.
    assert f"{URL}.vc" in shown.addresses()


def test_a_mistyped_uid_and_an_unknown_one_are_told_apart():
    for language in texts.LANGUAGES:
        unknown, mistyped = (Parsed(page.of_unknown(problem, language)) for problem in ("unknown", "mistyped"))
        assert unknown.text() != mistyped.text()
        for shown in (unknown, mistyped):
            assert shown.elements[0] == ("html", {"lang": language})
            assert shown.meta()["robots"] == "noindex"
            assert "XXXX-XXXX-XXXX-XXXX-XXXX-XXXX" in shown.text()
            assert shown.addresses() == []
    assert "There is no certificate with this number." in Parsed(page.of_unknown("unknown", "en")).text()
    assert "This cannot be the number of a certificate." in Parsed(page.of_unknown("mistyped", "en")).text()


# Requirements


@pytest.mark.parametrize(
    ("lessons", "quizzes", "folded"), [(1, 0, False), (0, 1, False), (9, 1, False), (10, 1, True), (990, 10, True)]
)
def test_many_requirements_are_folded_up(lessons: int, quizzes: int, folded: bool):
    shown = parsed(criteria=criteria(lessons, quizzes))
    # One <details> is about the signature.
    assert shown.tags().count("details") == 1 + folded
    listed = [text for text in shown.isolated() if re.match("Lesson|Test", text)]
    assert listed == [criterion.title for criterion in criteria(lessons, quizzes)]
    assert ("10 lessons completed, 1 quiz passed 10 lessons completed Lesson 0" in shown.text()) == (lessons == 10)
    assert shown.text().count("pass mark 66.5%") == quizzes


# LinkedIn


@pytest.mark.parametrize("expires", [None, datetime(2028, 12, 31, tzinfo=UTC)])
def test_the_link_for_linkedin_carries_the_certificate(expires: datetime | None):
    shown = parsed(course_title="R&D: 100 % é+ü", issuer_name="学院 = #1?", expires_at=expires)
    (address,) = linkedin(shown.addresses())
    assert address.isascii()
    parts = urlsplit(address)
    assert (parts.scheme, parts.netloc, parts.path, parts.fragment) == ("https", "www.linkedin.com", "/profile/add", "")
    assert parse_qsl(parts.query, strict_parsing=True) == [
        ("startTask", "CERTIFICATION_NAME"),
        ("name", "R&D: 100 % é+ü"),
        ("organizationName", "学院 = #1?"),
        ("issueYear", "2026"),
        ("issueMonth", "1"),
        *([("expirationYear", "2028"), ("expirationMonth", "12")] if expires else []),
        ("certUrl", URL),
        ("certId", UID),
    ]
    (attributes,) = [attributes for tag, attributes in shown.elements if tag == "a" and attributes["href"] == address]
    assert attributes["rel"] == "noopener noreferrer"


# What machines read


@pytest.mark.parametrize("fields", [{}, EXPIRED, REVOKED])
@pytest.mark.parametrize("language", texts.LANGUAGES)
def test_a_link_to_it_can_be_previewed(fields: dict[str, Any], language: str):
    shown = parsed(language, **fields)
    meta = shown.meta()
    word = texts.texts(language)["page"][fields.get("status", "valid")]["word"]
    assert meta["og:title"] == f"{word}: Reading maps · Ada Lovelace"
    assert ("title", meta["og:title"]) in shown.texts
    assert "Open College" in meta["og:description"]
    assert "Ada Lovelace" in meta["og:image:alt"]
    assert (meta["og:type"], meta["og:url"], meta["robots"]) == ("website", URL, "noindex")
    assert (meta["og:image"], meta["og:image:width"], meta["og:image:height"]) == (f"{URL}.png", "1200", "630")
    assert (meta["twitter:card"], meta["twitter:image"]) == ("summary_large_image", f"{URL}.png")
    assert ("link", {"rel": "canonical", "href": URL}) in shown.elements


@pytest.mark.parametrize(
    "html",
    [
        page.of_certificate(certificate(criteria=criteria(990, 10)), "en"),
        page.of_certificate(certificate(**REVOKED), "de"),
        page.of_unknown("mistyped", "en"),
    ],
)
def test_it_loads_nothing_and_its_policy_knows_its_style(html: str):
    shown = Parsed(html)
    assert {"script", "img", "iframe", "object", "form", "base"}.isdisjoint(shown.tags())
    (style,) = [text for tag, text in shown.texts if tag == "style"]
    assert "url(" not in style
    assert "@import" not in style
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}';" in page.CONTENT_SECURITY_POLICY
    for tag, attributes in shown.elements:
        assert not [name for name in attributes if name in ("style", "src", "srcset") or name.startswith("on")]
        assert tag != "link" or attributes["rel"] in ("canonical", "alternate")


# What others wrote


def test_markup_is_shown_as_it_was_written():
    evil = "<script>alert(1)</script> \"&amp;' {{ 7 * 7 }} {issuer.__class__}"
    html = page.of_certificate(
        certificate(
            learner_name=evil,
            course_title=evil,
            version=evil,
            issuer_name=evil,
            criteria=[Criterion(kind="quiz", title=evil, pass_threshold_percentage=50)],
            **REVOKED | {"revocation_reason": evil},
        ),
        "en",
    )
    assert "<script" not in html
    shown = Parsed(html)
    # The issuer stands there twice.
    assert shown.isolated() == [evil] * 7
    assert shown.meta()["og:title"] == f"Revoked: {evil} · {evil}"


def test_text_that_changes_the_direction_of_writing_cannot_change_the_words_around_it():
    html = page.of_certificate(certificate(learner_name="עדה\u202eecalevoL adA\u2066", course_title="\u202e \x07"), "en")
    assert "\u202e" not in html
    assert "\u2066" not in html
    assert Parsed(html).isolated()[1:3] == ["עדהecalevoL adA", "—"]


#: What others may write: learner's name, course, version, issuer, reason, and a lesson's title.
WRITTEN = st.tuples(*[st.text(min_size=1, max_size=60)] * 6)


@given(written=WRITTEN, language=st.sampled_from(texts.LANGUAGES))
def test_whatever_others_wrote_is_shown_and_changes_nothing_else(written: tuple[str, ...], language: str):
    learner, title, version, issuer, reason, item = written
    fields: dict[str, Any] = {"criteria": [Criterion(kind="lesson", title=item, pass_threshold_percentage=None)]}
    plain = parsed(language, **REVOKED | fields)
    shown = parsed(
        language,
        **REVOKED | fields | {"revocation_reason": reason},
        learner_name=learner,
        course_title=title,
        version=version,
        issuer_name=issuer,
    )
    assert shown.tags() == plain.tags()
    expected = [printable(text) or "—" for text in (reason, issuer, learner, title, version, issuer, item)]
    assert shown.isolated() == expected
    # The link for a profile stands in a valid one.
    (address,) = linkedin(parsed(language, course_title=title, issuer_name=issuer).addresses())
    fields_sent = dict(parse_qsl(urlsplit(address).query, strict_parsing=True))
    assert (fields_sent["name"], fields_sent["organizationName"]) == (printable(title) or "—", printable(issuer) or "—")


# Languages


def leaves(tree: Any, path: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], str]:
    """All texts of a tree, by where they stand."""
    match tree:
        case dict():
            return {where: text for key, below in tree.items() for where, text in leaves(below, (*path, key)).items()}
        case list():
            return {where: text for n, below in enumerate(tree) for where, text in leaves(below, (*path, n)).items()}
        case _:
            return {path: tree}


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def test_every_language_has_the_same_texts_with_the_same_places_to_fill_in(root: Path):
    files = sorted((root / "shared/certificate/texts").glob("*.toml"))
    assert {file.stem for file in files} == set(texts.LANGUAGES)
    first, *others = (leaves(tomllib.loads(file.read_text())) for file in files)
    for other in others:
        assert other.keys() == first.keys()
        for where, text in other.items():
            assert placeholders(text) == placeholders(first[where]), where
    assert all(text.strip() for language in (first, *others) for text in language.values())
