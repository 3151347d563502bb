"""The verification page in Chromium, as it is served: each state in each language, small and large, on paper, by keyboard.

PICTURES=<folder> keeps pictures of what was seen.
"""

import os
import shutil
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pypdfium2
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from shared import db, settings
from shared.certificate import texts
from shared.certificate.rules import new_uid
from tests.support.service import Service, course, event, quiz

AXE = Path(__file__).parent / "node_modules/axe-core/axe.min.js"

#: Every rule that axe-core has, those of WCAG 2.2 and of good practice among them; each finding in a line.
FINDINGS = """async () => {
    const rules = Object.fromEntries(axe.getRules().map(rule => [rule.ruleId, { enabled: true }]));
    const { violations } = await axe.run({ rules });
    return violations.flatMap(({ id, nodes }) => nodes.map(node => `${id}: ${node.html}: ${node.failureSummary}`));
}"""


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, which checks accessibility in the page."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed: npm ci --prefix tests/browser")
    return AXE.read_text()


@pytest.fixture(scope="module")
def chromium() -> Generator[Browser]:
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("there is no chromium on the PATH")
    arguments = (
        "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments.split())
        yield browser
        browser.close()


@pytest.fixture
def host(service: Service) -> Generator[str]:
    """Where the service's handlers answer over HTTP."""

    class Gateway(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = service.http("GET", self.path, sub=None, headers=headers)
            finally:
                db.close()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


# The states, each made as it comes about


def certificate(service: Service, *, name: str = "Ada Lovelace", **fields: Any) -> str:
    """The path of a fresh certificate in a course of these fields."""
    options: dict[str, Any] = {
        "title": "Reading maps",
        "version": "2026.1",
        "lessons": [
            {"lesson_id": str(uuid4()), "title": title, "required": True}
            for title in ("Scale and grid", "Contour lines", "Bearings")
        ],
        "quizzes": [quiz(title="Final test")],
        "certificate": {"valid_for_days": 730},
    }
    version = course() | options | fields
    about = {"user_id": str(uuid4()), "course_version_id": version["course_version_id"]}
    lessons = [about | {"lesson_id": lesson["lesson_id"], "status": "completed"} for lesson in version["lessons"]]
    attempts = [
        about | {"attempt_id": str(uuid4()), "quiz_id": one["quiz_id"], "answers": {"q1": "a"}} for one in version["quizzes"]
    ]
    named = event("learner.updated", {"user_id": about["user_id"], "name": name})
    service.send("catalog", event("course_version.published", version), named)
    service.send("enrollment", event("enrollment.requested", about, "2026-01-01T12:00:00Z"))
    service.send("progress", [event("lesson.progressed", lesson, "2026-01-02T12:00:00Z") for lesson in lessons])
    service.send("quiz", *[event("quiz.submitted", attempt, "2026-01-02T12:00:00Z") for attempt in attempts])
    service.deliver()
    assert service.dead_letters() == []
    (row,) = service.rows("SELECT certificate_uid FROM certificates WHERE user_id = %s", about["user_id"])
    return f"/certificates/{row['certificate_uid']}"


def expired(service: Service) -> str:
    path = certificate(service)
    service.rows("UPDATE certificates SET issued_at = '2026-01-03T00:00:00Z', expires_at = '2026-02-03T00:00:00Z'")
    return path


def revoked(service: Service, reason: str = "The final test was taken by somebody else.", **fields: Any) -> str:
    path = certificate(service, **fields)
    assert service.admin("POST", f"{path}/revoke", {"reason": reason}).status == 200
    return path


def unknown(_service: Service) -> str:
    return f"/certificates/{new_uid()}"


def mistyped(_service: Service) -> str:
    uid = new_uid()
    return f"/certificates/{'Z' if uid[0] == 'Y' else 'Y'}{uid[1:]}"


STATES: dict[str, Callable[[Service], str]] = {
    "valid": certificate,
    "expired": expired,
    "revoked": revoked,
    "unknown": unknown,
    "mistyped": mistyped,
}
#: What nobody should write, and someone will: as long as it may be, without any place to break a line.
ENDLESS = {"name": "W" * 500, "title": "M" * 1000, "version": "8" * 1000, "issuer_name": "@" * 1000}


@dataclass
class Seen:
    """A page, what the console said, and which addresses it asked for."""

    page: Page
    status: int
    console: list[str] = field(default_factory=list[str])
    requests: list[str] = field(default_factory=list[str])


@contextmanager
def visit(chromium: Browser, address: str, *, width: int = 1280, language: str = "en", script: bool = True) -> Generator[Seen]:
    """Open an address as someone with a window of this width who reads this language."""
    context = chromium.new_context(
        viewport={"width": width, "height": 900}, locale={"en": "en-GB", "de": "de-DE"}[language], java_script_enabled=script
    )
    page = context.new_page()
    seen = Seen(page, 0)
    page.on("console", lambda message: seen.console.append(message.text))
    page.on("pageerror", lambda error: seen.console.append(str(error)))
    context.on("request", lambda request: seen.requests.append(request.url))
    answer = page.goto(address)
    assert answer is not None
    seen.status = answer.status
    yield seen
    context.close()


def keep_picture(page: Page, name: str) -> None:
    """Keep a picture of the whole page if someone wants to look at it."""
    folder = os.environ.get("PICTURES")
    if folder:
        page.screenshot(path=Path(folder) / f"page-{name}.png", full_page=True)


def is_too_wide(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")


@pytest.mark.parametrize("state", STATES)
def test_it_is_accessible_quiet_and_asks_nobody_else(
    chromium: Browser, axe: str, service: Service, host: str, state: str, subtests: pytest.Subtests
):
    path = STATES[state](service)
    missing = state in ("unknown", "mistyped")
    for width, language in product((390, 1280), texts.LANGUAGES):
        with subtests.test(width=width, language=language), visit(chromium, host + path, width=width, language=language) as seen:
            page = seen.page
            assert seen.status == (404 if missing else 200)
            assert page.locator("html").get_attribute("lang") == language
            assert page.inner_text("h1") == texts.texts(language)["page"][state]["word"]
            keep_picture(page, f"{state}-{width}-{language}")
            for summary in page.locator("summary").all():
                summary.click()
            assert not is_too_wide(page)
            page.evaluate(axe)
            assert page.evaluate(FINDINGS) == []
            # Chromium itself notes it when a page comes with the status 404.
            assert [line for line in seen.console if not (missing and "status of 404" in line)] == []
            assert {urlsplit(address).netloc for address in seen.requests} == {urlsplit(host).netloc}


@pytest.mark.parametrize("width", [320, 1280])
def test_texts_without_end_stay_within_the_page(chromium: Browser, service: Service, host: str, width: int):
    lessons = [{"lesson_id": str(uuid4()), "title": "W" * 1000, "required": True}]
    path = revoked(service, "W" * 1000, **ENDLESS, lessons=lessons)
    with visit(chromium, host + path, width=width) as seen:
        keep_picture(seen.page, f"endless-{width}")
        assert not is_too_wide(seen.page)
        for summary in seen.page.locator("summary").all():
            summary.click()
        reach = seen.page.evaluate("Math.max(...[...document.querySelectorAll('bdi')].map(e => e.getBoundingClientRect().right))")
        assert reach <= seen.page.locator("main").evaluate("e => e.getBoundingClientRect().right")


def test_it_needs_no_script(chromium: Browser, service: Service, host: str):
    lessons = [{"lesson_id": str(uuid4()), "title": f"Lesson {n}", "required": True} for n in range(40)]
    path = certificate(service, lessons=lessons)
    with visit(chromium, host + path, script=False) as seen:
        page = seen.page
        assert page.get_by_text("Ada Lovelace").is_visible()
        for summary, within in (("40 lessons", "Lesson 39"), ("Check the digital signature", "credentialStatus")):
            assert not page.get_by_text(within).is_visible()
            page.locator("summary", has_text=summary).click()
            assert page.get_by_text(within).is_visible()


@pytest.mark.parametrize("state", ["valid", "expired", "revoked"])
def test_on_paper_it_is_one_page(
    chromium: Browser, service: Service, host: str, state: str, tmp_path: Path, subtests: pytest.Subtests
):
    path = STATES[state](service)
    for paper, language in product(("A4", "Letter"), texts.LANGUAGES):
        with subtests.test(paper=paper, language=language):
            with visit(chromium, host + path, language=language) as seen:
                seen.page.pdf(path=tmp_path / "page.pdf", format=paper)
            with pypdfium2.PdfDocument(tmp_path / "page.pdf") as document:
                assert len(document) == 1
                text = document[0].get_textpage().get_text_bounded()
            assert "Ada Lovelace" in text
            # Whoever holds the paper can find the page again.
            assert path in text
            # What can't be pressed on paper is not there.
            assert "LinkedIn" not in text


@pytest.mark.parametrize("state", STATES)
def test_the_keyboard_reaches_everything_and_shows_where_it_is(chromium: Browser, service: Service, host: str, state: str):
    path = STATES[state](service)
    with visit(chromium, host + path) as seen:
        page = seen.page
        for details in page.locator("details").all():
            details.locator("summary").focus()
            page.keyboard.press("Enter")
        page.evaluate("document.activeElement.blur()")
        page.mouse.click(2, 2)
        expected = page.locator("a, summary").all_inner_texts()
        reached: list[str] = []
        for _ in expected:
            page.keyboard.press("Tab")
            focused = page.evaluate(
                """() => {
                    const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
                    return [document.activeElement.innerText, outlineStyle, parseFloat(outlineWidth)];
                }"""
            )
            reached.append(focused[0])
            assert focused[1:] == ["solid", 3]
        assert reached == expected
        assert bool(expected) == (state not in ("unknown", "mistyped"))


@pytest.mark.parametrize("state", ["valid", "expired", "revoked"])
def test_what_it_links_to_is_there(chromium: Browser, service: Service, host: str, state: str):
    path = STATES[state](service)
    with visit(chromium, host + path) as seen:
        addresses = seen.page.evaluate(
            "[...document.querySelectorAll('a, link, meta[property=\"og:image\"]')].map(e => e.href ?? e.content)"
        )
    ours = {address for address in addresses if urlsplit(address).netloc == urlsplit(settings.public_base_url()).netloc}
    assert len(ours) >= 6
    for address in ours:
        answer = service.http("GET", urlsplit(address).path, sub=None)
        assert answer.status in (200, 302, 303, 307), address
