"""What is deployed is pinned to the byte, comes from one place, and says under which licence it is."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def requirements(root: Path) -> dict[Path, list[str]]:
    """Each requirement with its hashes, of each file that is packed."""
    files = [*root.glob("layers/*/requirements.txt"), *root.glob("functions/*/requirements.txt")]
    return {file: re.findall(r"^[^\s#](?:.*\\\n)*.*$", file.read_text(), re.MULTILINE) for file in files}


def test_everything_in_the_lock_comes_from_pypi_with_a_hash(root: Path):
    packages = tomllib.loads((root / "uv.lock").read_text())["package"]
    assert len(packages) > 100
    for package in packages:
        if package["source"] == {"virtual": "."}:
            continue
        assert package["source"] == {"registry": "https://pypi.org/simple"}, package["name"]
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        assert files, package["name"]
        for file in files:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", file["hash"]), file
            assert file["url"].startswith("https://files.pythonhosted.org/"), file


def test_everything_packed_is_pinned_to_a_version_and_its_hashes(root: Path):
    locked = {(p["name"], p["version"]): p for p in tomllib.loads((root / "uv.lock").read_text())["package"] if "version" in p}
    packed = requirements(root)
    assert len(packed) == 4
    for file, lines in packed.items():
        assert lines, file
        for line in lines:
            requirement = Requirement(line.partition(" \\")[0])
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            # pip, which SAM calls, takes hashes for all as soon as there is one.
            package = locked[requirement.name, pin.version]
            files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
            assert {given.removeprefix("--hash=") for given in HASH.findall(line)} == {f["hash"] for f in files}, line


def test_no_rule_of_the_linter_about_security_is_ignored_for_what_is_deployed(root: Path):
    """Rules `S` hold in shared/ and functions/, but for the few lines that say why not."""
    lint = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    assert "S" in lint["select"]
    assert not [rule for rule in lint["ignore"] if rule.startswith("S") and rule[1:].isdigit()]
    assert set(lint["per-file-ignores"]) == {"tests/**", "local/**", "scripts/**"}
    excused = [
        line.strip()
        for folder in ("shared", "functions")
        for path in (root / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"noqa(?!: (?!S)[A-Z])", line)
    ]
    assert all(re.search(r"noqa: S\d+ - |# noqa: S310$", line) for line in excused), excused
    assert len(excused) <= 4
