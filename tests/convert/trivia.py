"""OpenTriviaQA's questions as questions of a quiz.

A question is `#Q` with its text, which may run over lines, even blank ones and ones that begin like a choice; `^` with the right
answer, which ends the text; and a line with its letter for each choice, which may show a wrong answer twice.
"""

import gzip
import re
from pathlib import Path
from typing import Any

_QUESTION = re.compile(r"^#Q (?P<prompt>(?:.*\n)+?)\^ (?P<right>.*)\n(?P<choices>(?:[A-Z] .*\n)+)", re.MULTILINE)


def read(path: Path) -> str:
    """The text of a category's file, compressed with gzip.

    It is UTF-8 but for a byte or two in four lines, which stand in no right answer. What they were can't be told for three of
    them, so each is shown as U+FFFD. Line ends are of both kinds.
    """
    return gzip.decompress(path.read_bytes()).decode(errors="replace").replace("\r\n", "\n")


def questions(category: str, text: str) -> list[dict[str, Any]]:
    """The `single_choice` questions of a category, each worth 1 point, with ids `category-1`, `category-2`, ... as in the file.

    The ids of choices are their letters in lower case, so two choices of the same text stay apart.

    Raises
    ------
    ValueError
        The right answer of a question is none of its choices or more than one, or a question can't be made out at all.
    """
    found = list(_QUESTION.finditer(text))
    begun = len(re.findall("^#Q", text, re.MULTILINE))
    if len(found) != begun:
        raise ValueError(f"{category}: of {begun} questions only {len(found)} can be made out")
    return [_question(f"{category}-{n}", **match.groupdict()) for n, match in enumerate(found, 1)]


def _question(question_id: str, prompt: str, right: str, choices: str) -> dict[str, Any]:
    listed = [{"id": line[0].lower(), "text": line[2:]} for line in choices.splitlines()]
    correct = [choice["id"] for choice in listed if choice["text"] == right]
    if len(correct) != 1:
        raise ValueError(f"{question_id}: {right!r} is {len(correct)} of the choices")
    return {
        "question_id": question_id,
        "kind": "single_choice",
        "prompt": prompt.strip(),
        "points": 1,
        "choices": listed,
        "correct": correct[0],
    }
