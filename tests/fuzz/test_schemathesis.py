"""Whether the running service answers as docs/openapi.json says, whatever is asked: schemathesis with all its checks."""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from local import postgres, run, service
from local.service import LEARNER_ID

#: Cases for each operation and caller beside those that schemathesis makes from the limits in the document. Unless it is set,
#: what fits into a minute is done, the same each time.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
SEED = int(os.environ.get("FUZZ_SEED", "20260131"))
EVERYTHING = "examples,coverage,fuzzing,stateful"
#: By which token, and in which phases unless more is asked for: most of what an administrator may do is refused to the others.
CALLERS = {
    "administrator": ("ADMIN_TOKEN", EVERYTHING),
    "learner": ("LEARNER_TOKEN", "fuzzing,stateful"),
    "reporter": ("REPORT_TOKEN", "fuzzing"),
}


class Api:
    """The running service as its administrator has it."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def __call__(self, method: str, path: str, body: Any = None, caller: str = "ADMIN_TOKEN") -> Any:
        headers = {"Authorization": f"Bearer {self._environment[caller]}"}
        url = self._environment["API_URL"] + path
        return httpx.request(method, url, json=body, headers=headers, timeout=30, trust_env=False).raise_for_status().json()


def known_ids(environment: dict[str, str]) -> dict[str, list[str]]:
    """Make something of each kind, and give the ids by the names of the parameters that they stand for."""
    api = Api(environment)
    version = run.COURSE_VERSION
    quiz, lessons = version["quizzes"][0], version["lessons"]
    own = f"/users/{LEARNER_ID}/enrollments/{version['course_version_id']}"
    api("PUT", own, caller="LEARNER_TOKEN")
    attempts = [api("POST", f"{own}/quizzes/{quiz['quiz_id']}/attempts")["id"]]
    api("POST", f"/quiz-attempts/{attempts[0]}/submit", {"answers": {"q1": "a", "q2": 2, "q3": "North"}})
    api("PUT", f"{own}/quizzes/{quiz['quiz_id']}/allowance", {"extra_attempts": 1000})
    attempts.append(api("POST", f"{own}/quizzes/{quiz['quiz_id']}/attempts")["id"])
    for lesson in lessons[:2]:
        api("PUT", f"{own}/lessons/{lesson['lesson_id']}/progress", {"status": "completed"})
    regrade = api("POST", f"/course-versions/{version['course_version_id']}/quizzes/{quiz['quiz_id']}/regrade", {"dry_run": True})
    certificates: list[Any] = []
    until = time.monotonic() + 60
    while not certificates:
        assert time.monotonic() < until, "the certificate was not issued"
        certificates = api("GET", f"/users/{LEARNER_ID}/certificates")["items"]
    return {
        "user_id": ["me", LEARNER_ID],
        "course_version_id": [version["course_version_id"]],
        "lesson_id": [lesson["lesson_id"] for lesson in lessons],
        "requirement_id": [lessons[2]["lesson_id"], quiz["quiz_id"]],
        "quiz_id": [quiz["quiz_id"]],
        "attempt_id": attempts,
        "regrade_id": [regrade["id"]],
        "certificate_uid": [certificates[0]["certificate_uid"]],
        "number": ["0"],
    }


def configuration(ids: dict[str, list[str]]) -> str:
    """schemathesis.toml: most requests are about what there is."""
    lines = ['hooks = "hooks.py"', "continue-on-failure = true"]
    for name, values in ids.items():
        lines += [f"[dictionaries.{name}]", f"values = {values}"]
    lines.append("[parameters]")
    lines += [f'"path.{name}" = {{ dictionary = "{name}", probability = 0.8 }}' for name in ids]
    return "\n".join(lines)


@pytest.mark.timeout(7200 if EXAMPLES else 900)
def test_whatever_is_asked_the_answer_is_as_documented(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "hooks.py").write_bytes(Path(__file__).with_name("hooks.py").read_bytes())
    begun = time.monotonic()
    with service.running(postgres.free_port(), tmp_path / ".local") as environment:
        run.seed(environment)
        (tmp_path / "schemathesis.toml").write_text(configuration(known_ids(environment)))

        def fuzz(caller: str) -> str:
            token, phases = CALLERS[caller]
            command = [
                str(Path(sys.executable).with_name("schemathesis")),
                "run",
                f"{environment['API_URL']}/openapi.json",
                f"--header=Authorization: Bearer {environment[token]}",
                "--checks=all",
                "--mode=all",
                f"--phases={EVERYTHING if EXAMPLES else phases}",
                f"--max-examples={EXAMPLES or 4}",
                f"--seed={SEED}",
                "--generation-database=none",
                "--no-color",
            ]
            surroundings = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
            done = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False)
            (tmp_path / f"{caller}.log").write_text(done.stdout + done.stderr)
            return f"as {caller}: {done.stdout}{done.stderr}" if done.returncode else done.stdout

        with ThreadPoolExecutor(len(CALLERS)) as pool:
            reports = list(pool.map(fuzz, CALLERS))
        log = "".join(path.read_text() for path in (tmp_path / ".local" / "log").glob("*_api.log"))
    cases = [int(re.findall(r"(\d+) generated", report)[0]) for report in reports]
    with capsys.disabled():
        each = ", ".join(f"{number:,} as {caller}" for caller, number in zip(CALLERS, cases, strict=True))
        print(f"\n{sum(cases):,} requests by schemathesis in {time.monotonic() - begun:.0f} s, seed {SEED}: {each}")
    assert not [report for report in reports if report.startswith("as ")], "\n".join(reports)
    assert "Traceback" not in log
