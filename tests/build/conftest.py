"""The built artifacts, and the template that they are built from."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from local import template
from tests.support.stack import PARAMETERS, translate

PROJECT = Path(__file__).parents[2]


#: This machine's architecture, in AWS's words, and the other one.
ARCHITECTURE, OTHER = ("arm64", "x86_64") if platform.machine() in ("aarch64", "arm64") else ("x86_64", "arm64")


def make(*arguments: str) -> None:
    # A make that runs these tests must not hand its flags and variables down to this one.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    done = subprocess.run(["make", *arguments], cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def artifacts() -> Path:
    """The folder with what `make build` makes for this machine; built here unless it is up to date."""
    make("build", f"ARCHITECTURE={ARCHITECTURE}")
    return PROJECT / ".aws-sam" / "build"


@pytest.fixture(scope="session")
def other_artifacts() -> Path:
    """The folder with what `make build` makes for the other architecture, beside this machine's own."""
    folder = Path(".aws-sam", OTHER)
    make("build", f"ARCHITECTURE={OTHER}", f"FOLDER={folder}")
    return PROJECT / folder / ".aws-sam" / "build"


@pytest.fixture(scope="session")
def translated() -> dict[str, dict[str, Any]]:
    """What SAM makes of the template for each of PARAMETERS."""
    make(".tools/sam/.stamp")
    return translate((PROJECT / "template.yaml").read_text(), PARAMETERS)


@pytest.fixture(scope="session")
def stack() -> template.Template:
    """The template as the local service reads it, with any values for its parameters."""
    parameters = {
        "DatabaseUrl": "postgresql://app@database.example.org/learner_progress",
        "JwtIssuer": "https://iam.example.org",
        "PublicBaseUrl": "https://certificates.example.org",
        "CredentialKey": "key-of-credentials",
        "CredentialJwtKey": "key-of-tokens",
    }
    return template.read(parameters, "https://sqs.eu-west-1.amazonaws.com")


@pytest.fixture(scope="session")
def document() -> dict[str, Any]:
    """The template as it is written; `!Ref x` is `{"Ref": "x"}`, and `!If [a, b, c]` is `{"If": ["a", "b", "c"]}`."""

    class Loader(yaml.SafeLoader):
        pass

    def intrinsic(loader: yaml.SafeLoader, name: str, node: yaml.Node) -> dict[str, Any]:
        return {name: loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else node.value}

    Loader.add_multi_constructor("!", intrinsic)
    return yaml.load((PROJECT / "template.yaml").read_text(), Loader)  # noqa: S506 - the loader is a SafeLoader.
