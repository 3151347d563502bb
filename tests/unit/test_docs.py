"""The documents name what the code has."""

import re
from pathlib import Path

from local import verify
from shared import errors, messages


def leaves(tree: type[errors.ServiceError]) -> set[type[errors.ServiceError]]:
    """Every error below this one, and itself."""
    return {tree}.union(*(leaves(kind) for kind in tree.__subclasses__()))


def test_every_error_is_in_the_table_of_codes_and_in_the_drawing(root: Path):
    assert messages.UnknownType in leaves(errors.ServiceError)
    documented = set(re.findall(r"^\| `(\w+)` \|", (root / "docs/api.md").read_text(), re.MULTILINE))
    abstract = {errors.ServiceError, errors.Conflict}
    assert documented >= {kind.code() for kind in leaves(errors.ServiceError) - abstract}
    drawn = set(re.findall(r"\w+", errors.__doc__ or ""))
    assert drawn >= {kind.__name__ for kind in leaves(errors.ServiceError) if kind.__module__ == errors.__name__}


def test_every_environment_variable_is_documented(root: Path):
    documented = (root / "docs/architecture.md").read_text()
    used = set(re.findall(r'"([A-Z][A-Z_]{5,})"', (root / "shared/settings.py").read_text()))
    assert used
    assert not {name for name in used if f"`{name}`" not in documented}


def test_every_relative_link_leads_somewhere(root: Path):
    for page in [root / "README.md", *(root / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_invariant_is_in_the_table_of_what_to_do(root: Path):
    documented = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", (root / "docs/operations.md").read_text()))
    assert verify.invariants()[1].keys() <= documented


def test_every_test_that_a_guarantee_names_is_there(root: Path):
    """A promise without its test would be a claim."""
    names = 0
    folder = root / "tests/faults"
    for line in (root / "docs/guarantees.md").read_text().splitlines():
        # A file that stands before it says where, else it is one of the tests of faults.
        for file, name in re.findall(r"(?:`(tests/[\w/]+\.py)`: )?`(test_\w+)`", line):
            pages = [root / file] if file else list(folder.glob("test_*.py"))
            assert any(re.search(rf"^def {name}\(", page.read_text(), re.MULTILINE) for page in pages), name
            names += 1
    assert names > 20
