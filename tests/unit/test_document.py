"""The certificate on paper and as a picture: it comes out whatever the names are, and programs can read it."""

import hashlib
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unicodedata import bidirectional, category, normalize

import pikepdf
import pypdfium2
import pytest
import segno
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.certificate import document, texts
from shared.certificate.models import Certificate
from shared.observability import logger

UID = "7Q3M-0V9K-2XBT-8RZA-5WNC-D1HG"
NAUGHTY: list[str] = json.loads((Path(__file__).parent.parent / "data/naughty-strings/blns-even.json").read_text())
#: Names and course titles, by the locale of the learner.
SCRIPTS = {
    "pl": ("Łukasz Brzęczyszczykiewicz", "Wstęp do socjologii"),
    "vi": ("Nguyễn Thị Ánh Tuyết", "Nhập môn xã hội học"),
    "el": ("Ελένη Παπαδοπούλου", "Εισαγωγή στην κοινωνιολογία"),
    "ru": ("Фёдор Михайлович Достоевский", "Введение в социологию"),
    "ar-EG": ("محمد بن عبد الله", "مقدمة في العلوم الاجتماعية"),
    "he": ("דָּוִד בֶּן־גּוּרִיּוֹן", "מבוא לסוציולוגיה"),
    "hi": ("कृष्णमूर्ति श्रीनिवासन", "सामाजिक विज्ञान"),
    "th": ("สมชาย ศักดิ์สิทธิ์", "ความรู้เบื้องต้นเกี่ยวกับสังคมศาสตร์"),
    "km": ("សុខ វិចិត្រ", "វិទ្យាសាស្ត្រសង្គម"),
    "zh-CN": ("欧阳晓明", "社会科学导论 — 理论与方法"),
    "zh-Hant-TW": ("歐陽曉明", "社會科學導論"),
    "ja-JP": ("山田 花子", "社会科学入門"),
    "ko": ("김철수", "사회과학 입문"),
    "en-US": ("Łukasz 李 김 (محمد) Smith-Παπά", "On Ελένη, דוד & 3 others"),
}
FAMILIES = re.compile(r"[A-Z]{6}\+(NotoS(ans|erif)\w*|Certificate(Fallback|Hidden))(-\w+)*")


def certificate(**values: Any) -> Certificate:
    """An ordinary certificate, but for what is given."""
    given: dict[str, Any] = {
        "certificate_uid": UID,
        "status": "valid",
        "learner_name": "Ada Lovelace",
        "course_title": "Social science",
        "version": "2013J",
        "issuer_name": "Faculty of Social Sciences",
        "criteria": [],
        "score": 87.46,
        "completed_at": datetime(2026, 1, 31, 9, 30, tzinfo=UTC),
        "issued_at": datetime(2026, 2, 1, 12, 0, tzinfo=UTC),
        "expires_at": None,
        "revoked_at": None,
        "revocation_reason": None,
        "url": f"https://certificates.example.org/certificates/{UID}",
    }
    return Certificate(**given | values)


def visible(text: str) -> str:
    """A text without white space, and without what can't be seen anyway."""
    return "".join(c for c in text if not c.isspace() and category(c) not in {"Cc", "Cf", "Cn", "Co"})


def poppler(pdf: bytes, program: str, *arguments: str) -> str:
    """What one of Poppler's programs says of a PDF, by default the text in it."""
    run = subprocess.run([program, *arguments, "-", *(["-"] if program == "pdftotext" else [])], input=pdf, capture_output=True)
    return run.stdout.decode()


needs_poppler = pytest.mark.skipif(shutil.which("pdftotext") is None, reason="Poppler's pdftotext and pdfinfo are not installed")


def text_in(pdf: bytes) -> str:
    """The text of a PDF's only page, after a look that it is the only one and that each character lies within the frame."""
    with pypdfium2.PdfDocument(pdf) as opened:
        assert len(opened) == 1
        page = opened[0]
        width, height = page.get_size()
        content = page.get_textpage()
        for n in range(content.count_chars()):
            left, bottom, right, top = content.get_charbox(n)
            assert 31 <= left <= right <= width - 31 or left == right, (n, left, right)
            assert 31 <= bottom <= top <= height - 5 or bottom == top, (n, bottom, top)
        return content.get_text_range()


def is_accessible(pdf: bytes) -> bool:
    """Whether a PDF says that it is PDF/UA-1, is tagged, and has a language, a title and only fonts of ours, embedded."""
    with pikepdf.open(io.BytesIO(pdf)) as opened:
        assert opened.Root.MarkInfo.Marked
        assert str(opened.Root.Lang) in texts.LANGUAGES
        assert opened.Root.ViewerPreferences.DisplayDocTitle
        for font in opened.pages[0].Resources.Font.values():
            descendant: Any = font.DescendantFonts[0]
            assert "/FontFile2" in descendant.FontDescriptor or "/FontFile3" in descendant.FontDescriptor
            assert FAMILIES.fullmatch(str(font.BaseFont).removeprefix("/")), font.BaseFont
        with opened.open_metadata(set_pikepdf_as_editor=False, update_docinfo=False) as metadata:
            return metadata["pdfuaid:part"] == "1" and bool(metadata["dc:title"])


@pytest.fixture
def log() -> Iterator[list[str]]:
    """The lines that are logged."""
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(logger.registered_formatter.format(record))

    handler = Kept()
    logging.getLogger(logger.name).addHandler(handler)
    yield lines
    logging.getLogger(logger.name).removeHandler(handler)


def test_it_says_what_a_certificate_has_to_say():
    pdf = document.pdf(certificate(expires_at=datetime(2028, 1, 31, tzinfo=UTC)), "en-GB")
    text = text_in(pdf)
    for part in (
        "Certificate of Completion",
        "Ada Lovelace",
        "Social science",
        "2013J",
        "31 January 2026",
        "1 February 2026",
        "31 January 2028",
        "87.4%",
        "Faculty of Social Sciences",
        UID,
    ):
        assert part in text
    assert visible(f"https://certificates.example.org/certificates/{UID}") in visible(text)
    assert "Revoked" not in text
    assert is_accessible(pdf)


def test_it_does_not_speak_of_what_there_is_not():
    text = text_in(document.pdf(certificate(score=None), "en"))
    assert "Score" not in text
    assert "Valid until" not in text


def test_the_learners_language_is_spoken():
    pdf = document.pdf(certificate(), "de-AT")
    text = text_in(pdf)
    assert "Abschlusszertifikat" in text
    assert "31. Januar 2026" in text
    assert "87,4" in text
    with pikepdf.open(io.BytesIO(pdf)) as opened:
        assert opened.Root.Lang == "de"


def test_all_languages_have_the_same_texts():
    english, *others = (texts.texts(language)["document"] for language in texts.LANGUAGES)
    assert all(other.keys() == english.keys() for other in others)


@pytest.mark.parametrize(
    ("locale", "size"),
    [
        (None, (297, 210)),
        ("en", (297, 210)),
        ("de-AT", (297, 210)),
        ("zh-Hant-TW", (297, 210)),
        ("en-US", (279.4, 215.9)),
        ("es_MX", (279.4, 215.9)),
        ("fil-Latn-PH", (279.4, 215.9)),
    ],
)
def test_the_paper_is_that_of_the_territory(locale: str | None, size: tuple[float, float]):
    with pypdfium2.PdfDocument(document.pdf(certificate(), locale)) as opened:
        assert opened[0].get_size() == pytest.approx([side / 25.4 * 72 for side in size], abs=0.1)


def test_title_author_and_time_are_those_of_the_certificate():
    with pikepdf.open(io.BytesIO(document.pdf(certificate(), "en"))) as opened:
        assert opened.docinfo.Title == "Certificate of Completion: Social science, Ada Lovelace"
        assert opened.docinfo.Author == "Faculty of Social Sciences"
        assert str(opened.docinfo.CreationDate).startswith("D:20260201120000")


@pytest.mark.parametrize("name", [pytest.param(name, id=str(n)) for n, name in enumerate(NAUGHTY)])
def test_any_name_comes_out(name: str):
    pdf = document.pdf(certificate(learner_name=name), "en")
    text_in(pdf)
    assert is_accessible(pdf)
    if shutil.which("pdftotext"):
        assert visible(name) in visible(poppler(pdf, "pdftotext"))


@needs_poppler
@pytest.mark.parametrize("locale", SCRIPTS)
def test_programs_read_names_in_any_script(locale: str):
    name, title = SCRIPTS[locale]
    pdf = document.pdf(certificate(learner_name=name, course_title=title, issuer_name=title), locale)
    text = visible(poppler(pdf, "pdftotext"))
    assert visible(name) in text
    assert text.count(visible(title)) == 2


@pytest.mark.parametrize("locale", SCRIPTS)
def test_names_in_any_script_are_drawn_without_the_font_of_last_resort(locale: str, log: list[str]):
    name, title = SCRIPTS[locale]
    pdf = document.pdf(certificate(learner_name=name, course_title=title), locale)
    text = text_in(pdf)
    assert is_accessible(pdf)
    assert not log
    # PDFium turns no runs around that are written from right to left.
    if not any(bidirectional(c) in {"R", "AL"} for c in name):
        assert visible(name) in visible(text)


@needs_poppler
@pytest.mark.parametrize("name", ["Ada Lovelace", "محمد بن عبد الله", "ⵣⵓⵍ 😀"])
def test_poppler_says_that_it_is_tagged_and_for_everyone(name: str):
    pdf = document.pdf(certificate(learner_name=name), "en")
    assert re.search(r"^Tagged: +yes$", poppler(pdf, "pdfinfo"), re.MULTILINE)
    assert "<pdfuaid:part>1</pdfuaid:part>" in poppler(pdf, "pdfinfo", "-meta")
    structure = poppler(pdf, "pdfinfo", "-struct")
    assert "H1" in structure
    assert "Figure" in structure


@pytest.mark.parametrize("name", ["Ὦ Ada ⵣⵓⵍ", "😀 Ada", "\U0001d4d0da \ua66e", "\ue000"])
def test_a_name_that_no_font_has_is_said_so_once_and_not_told(name: str, log: list[str]):
    pdf = document.pdf(certificate(learner_name=name), "en")
    assert len(log) == 1
    line = json.loads(log[0])
    assert line["level"] == "WARNING"
    assert line["certificate_uid"] == UID
    assert not any(name in str(value) for value in line.values())
    assert is_accessible(pdf)


def test_marks_that_no_font_has_are_noticed_in_a_drawing(log: list[str]):
    document.pdf(certificate(learner_name="ⵣⵓⵍ\u0301\u1a7f"), "en")
    assert len(log) == 1


@pytest.mark.parametrize("name", ["\x00\x1b\x07", "\u202e\u2066\u2069", "\n\t ", "\ufeff", ""])
def test_a_name_of_which_nothing_can_be_drawn_is_a_dash(name: str):
    assert "awarded to\r\n—\r\n" in text_in(document.pdf(certificate(learner_name=name), "en"))


def test_control_characters_are_left_out_and_white_space_is_folded():
    name = "\u202eAda\x1b[0m \u2067King\u2069\u00a0\n\tLove\u0007lace\ufffe"
    assert "\nAda[0m King Lovelace\r" in text_in(document.pdf(certificate(learner_name=name), "en"))


@pytest.mark.parametrize(
    "name", ['#import "x"', "*a* _b_ `c`", "\\", "$x^2$ <b> @ref = - + / //", "https://example.org", "a -- b ... 'c'"]
)
def test_no_name_is_read_as_markup(name: str):
    assert visible(name) in visible(text_in(document.pdf(certificate(learner_name=name), "en")))


LONG = {
    "words": "Wolfeschlegelsteinhausenbergerdorff " * 30,
    "one word": "W" * 1000,
    "hyphens": "a-" * 500,
    "narrow": "i" * 1000,
    "Chinese": "漢" * 1000,
    "Chinese, quoted": '漢"' * 500,
    "Korean": "김" * 1000,
    "Japanese prolonged": "ー" * 1000,
    "Thai": "กิ์" * 333,
    "Thai words": "สังคมศาสตร์และการวิจัย" * 45,
    "Arabic": "محمد" * 250,
    "Arabic wide": "﷽" * 1000,
    "Hebrew words": "דוד בן גוריון " * 70,
    "Devanagari conjuncts": "क्" * 500,
    "one letter, many marks": "e" + "\u0301" * 999,
    "marks alone": "\u0301\u0323" * 500,
    "joined": "👩\u200d" * 500,
    "no font": "ⵣ" * 1000,
    "jamo": "\u1100" * 1000,
}


@pytest.mark.parametrize("kind", LONG)
def test_however_long_they_are_texts_stay_on_their_page(kind: str):
    text = LONG[kind][:1000].strip()
    pdf = document.pdf(
        certificate(
            learner_name=text,
            course_title=text,
            version=text,
            issuer_name=text,
            expires_at=datetime(2028, 1, 31, tzinfo=UTC),
            revoked_at=datetime(2026, 3, 31, tzinfo=UTC),
            revocation_reason=text,
        ),
        "en-US",
    )
    text_in(pdf)
    assert is_accessible(pdf)
    assert document.picture(certificate(learner_name=text, course_title=text, issuer_name=text), "en").startswith(b"\x89PNG")


def test_long_names_shrink_and_wrap_before_they_are_cut():
    def height(name: str) -> float:
        with pypdfium2.PdfDocument(document.pdf(certificate(learner_name=name), "en")) as opened:
            content = opened[0].get_textpage()
            at = content.get_text_range().index("awarded to") + len("awarded to\r\n")
            left, bottom, right, top = content.get_charbox(at)
            assert right > left
            return top - bottom

    heights = [height("H" * length) for length in (10, 25, 50, 80)]
    assert heights == sorted(set(heights), reverse=True)
    assert height("Hugo " * 180) > 5
    assert "…" not in text_in(document.pdf(certificate(learner_name="Hugo " * 180), "en"))
    assert "…" in text_in(document.pdf(certificate(learner_name="W" * 1000), "en"))


texts_of_all_kinds = st.one_of(
    st.text(min_size=1, max_size=1000),
    st.text(min_size=1, max_size=40),
    st.text(st.sampled_from('aW漢김กิ์محمדَّ \u0301\u200d\u200b\u2060\u202e-/"」「ー😀\u1100()12'), min_size=1, max_size=300),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=texts_of_all_kinds,
    title=texts_of_all_kinds,
    version=texts_of_all_kinds,
    issuer=texts_of_all_kinds,
    reason=texts_of_all_kinds,
)
def test_any_text_comes_out(name: str, title: str, version: str, issuer: str, reason: str):
    pdf = document.pdf(
        certificate(
            learner_name=name,
            course_title=title,
            version=version,
            issuer_name=issuer,
            revoked_at=datetime(2026, 3, 31, tzinfo=UTC),
            revocation_reason=reason,
        ),
        None,
    )
    text_in(pdf)
    assert is_accessible(pdf)


def test_a_revoked_one_says_so_and_why():
    revoked = certificate(
        status="revoked", revoked_at=datetime(2026, 3, 31, tzinfo=UTC), revocation_reason="Taken by somebody else."
    )
    text = text_in(document.pdf(revoked, "en"))
    assert "Revoked on 31 March 2026" in text
    assert "Taken by somebody else." in text
    long = revoked.model_copy(update={"revocation_reason": "Taken by somebody else. " * 40})
    shortened = text_in(document.pdf(long, "en"))
    assert "Taken by somebody else." in shortened
    assert "…" in shortened


def test_equal_certificates_give_equal_bytes_in_any_process(root: Path):
    given = certificate(learner_name="Ada محمد 李", expires_at=datetime(2028, 1, 31, tzinfo=UTC))
    program = (
        "import hashlib, sys; from shared.certificate import document; from shared.certificate.models import Certificate\n"
        "given = Certificate.model_validate_json(sys.stdin.read())\n"
        "for made in document.pdf(given, 'en-US'), document.picture(given, 'de'): print(hashlib.sha256(made).hexdigest())"
    )
    # No fonts but those of the packages are to be found there, and no network.
    environment = {"PYTHONHASHSEED": "1", "HOME": "/nonexistent", "HTTPS_PROXY": "http://127.0.0.1:9", "PATH": ""}
    environment |= {name: value for name, value in os.environ.items() if name.startswith("POWERTOOLS")}
    other = subprocess.run(
        [sys.executable, "-c", program],
        input=given.model_dump_json(),
        cwd=root,
        env=environment,
        text=True,
        capture_output=True,
        check=True,
    )
    made = document.pdf(given, "en-US"), document.picture(given, "de")
    assert other.stdout.split() == [hashlib.sha256(one).hexdigest() for one in made]
    assert document.pdf(given, "en-US") == made[0]


def test_whether_it_has_expired_meanwhile_is_not_in_it():
    given = certificate(expires_at=datetime(2028, 1, 31, tzinfo=UTC))
    assert document.pdf(given, "en") == document.pdf(given.model_copy(update={"status": "expired"}), "en")


def test_the_code_leads_to_the_page():
    given = certificate()
    pdf = document.pdf(given, "en")
    with pikepdf.open(io.BytesIO(pdf)) as opened:
        figures = [item for item in opened.objects if isinstance(item, pikepdf.Dictionary) and item.get("/S") == "/Figure"]
        (figure,) = figures
        assert given.url in str(figure.Alt)
        attributes: Any = figure.A[0] if isinstance(figure.A, pikepdf.Array) else figure.A
        left, bottom, right, top = (float(edge) for edge in attributes.BBox)
        assert [str(link.A.URI) for link in opened.pages[0].Annots if link.Subtype == "/Link"]
        assert {str(link.A.URI) for link in opened.pages[0].Annots} == {given.url}
    modules = [[bool(module) for module in row] for row in segno.make_qr(given.url, error="m", boost_error=False).matrix]
    scale = 6
    with pypdfium2.PdfDocument(pdf) as opened:
        page = opened[0]
        bitmap = page.render(scale=scale, grayscale=True)
        height = page.get_size()[1]
        step = (right - left) / len(modules)

        def is_dark(row: int, column: int) -> bool:
            x, y = left + (column + 0.5) * step, height - top + (row + 0.5) * step
            return bitmap.buffer[int(y * scale) * bitmap.stride + int(x * scale)] < 128

        seen = [[is_dark(row, column) for column in range(len(modules))] for row in range(len(modules))]
    assert top - bottom == pytest.approx(right - left, abs=0.1)
    assert seen == modules


@pytest.mark.parametrize(
    ("locale", "font"),
    [("ja", "JP"), ("ko-KR", "KR"), ("zh-Hant", "TC"), ("zh_HK", "TC"), ("zh", "SC"), ("en", "SC"), (None, "SC")],
)
def test_chinese_characters_have_the_shapes_that_the_locale_is_used_to(locale: str | None, font: str):
    with pikepdf.open(io.BytesIO(document.pdf(certificate(learner_name="直美"), locale))) as opened:
        names = " ".join(str(item.BaseFont) for item in opened.pages[0].Resources.Font.values())
    assert re.findall(r"NotoSans(JP|KR|SC|TC)", names) == [font]


def test_drawn_letters_are_not_cut_where_they_reach_beyond_their_line():
    def ink(name: str) -> int:
        with pypdfium2.PdfDocument(document.pdf(certificate(learner_name=name), "en")) as opened:
            bitmap = opened[0].render(scale=2, grayscale=True)
            return sum(255 - value for value in bytes(bitmap.buffer))

    # But for two dots below the line, the names are the same.
    nothing, without, dotted = ink("\u00a0"), ink("ى ى ى"), ink("ي ي ي")
    assert dotted - nothing > 1.1 * (without - nothing) > 0


@pytest.mark.parametrize("language", texts.LANGUAGES)
@pytest.mark.parametrize("status", ["valid", "expired", "revoked"])
def test_the_picture_has_the_size_that_readers_of_open_graph_ask_for(status: str, language: str):
    picture = document.picture(
        certificate(
            status=status,
            expires_at=None if status == "valid" else datetime(2026, 3, 1, tzinfo=UTC),
            revoked_at=datetime(2026, 3, 31, tzinfo=UTC) if status == "revoked" else None,
            revocation_reason="No reason." if status == "revoked" else None,
        ),
        language,
    )
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert (int.from_bytes(picture[16:20]), int.from_bytes(picture[20:24])) == (1200, 630)
    assert len(picture) < 300_000


def test_the_pictures_of_the_states_differ():
    expired = certificate(status="expired", expires_at=datetime(2026, 3, 1, tzinfo=UTC))
    valid = expired.model_copy(update={"status": "valid"})
    revoked = expired.model_copy(update={"status": "revoked", "revoked_at": datetime(2026, 2, 28, tzinfo=UTC)})
    assert len({document.picture(state, "en") for state in (certificate(), expired, valid, revoked)}) == 4


def test_a_panic_in_typst_is_an_error_like_any_other():
    given = certificate()
    data = document._data(given, "en", None) | {"kind": "outlines", "paper": "a4", "outlined": ["name"], "outlines": {}}
    # A syllable of 1,000 characters, which `_text` would have shortened, is more than its shaper can count.
    with pytest.raises(RuntimeError, match="panicked"):
        document._compiled(given, "svg", data | {"name": {"text": "क्" * 500, "rtl": False}})
    assert document.pdf(given, "en")


def test_a_text_is_not_normalised():
    assert normalize("NFC", name := "Ame\u0301lie") != name
    if shutil.which("pdftotext"):
        assert name in poppler(document.pdf(certificate(learner_name=name), "fr"), "pdftotext")
