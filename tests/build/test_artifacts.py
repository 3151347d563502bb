"""What `make build` packs: complete, for the right machine, compiled, and nothing twice."""

import json
import platform
import re
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from local.template import Template

PROJECT = Path(__file__).parents[2]

# The functions by the logical ids that their folders' names make.
FUNCTIONS = sorted(path.parent.name.title().replace("_", "") for path in PROJECT.glob("functions/*/app.py"))
LAYERS = ["DependenciesLayer", "DocumentsLayer", "FontsLayer", "MigrationsLayer", "SharedLayer"]

# What Lambda's Python runtime brings along: boto3 and all that it needs.
RUNTIME = ["boto3", "botocore", "dateutil", "jmespath", "s3transfer", "six.py", "urllib3"]

# The packages that a function may import when it starts; whatever else it needs is imported by the event that needs it.
STARTS_WITH = {
    *["app", "shared", "aws_lambda_powertools", "jmespath", "certifi", "simplejson", "psycopg", "psycopg_binary"],
    *["pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"],
    # Powertools gives botocore its name for the user agent; that one small module is all of it.
    "botocore",
}
# And those of functions that nobody waits for.
STARTS_WITH_MORE = {
    "CertificateWorker": {
        *["_cffi_backend", "base58", "c14n", "cachetools", "cryptography", "frozendict", "lxml", "pyld", "segno", "typst"],
    },
    "Migrate": {"importlib_metadata", "lazy_importer", "sqlparse", "yoyo"},
    "OutboxRelay": {"boto3", "dateutil", "s3transfer", "six", "urllib3"},
}
MAY_IMPORT_BOTOCORE = {"OutboxRelay", "CertificateWorker"}
# What makes the description of the API, which no function is asked for.
DESCRIPTION = {f"aws_lambda_powertools.event_handler.openapi.{name}" for name in ("models", "swagger_ui")}

# The numbers of the ELF format for machines, by the names that uname has for them.
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}

# Lambda's limit for a function with all its layers, unzipped.
MAX_UNZIPPED_BYTES = 250 * 1024 * 1024

# Where `make build` has not run before, it downloads what it packs, for both architectures.
pytestmark = pytest.mark.timeout(600)

# The file of each module that is loaded when a function has started, and all that Python had to compile for it.
START = """
import gc, json, sys
sys.path[:0] = json.loads(sys.argv[1])
compiled = []
sys.addaudithook(lambda event, args: compiled.append(str(args[1])) if event == "compile" else None)
from shared import entrypoint
import app
assert entrypoint.handler is app.handler and callable(app.handler)
assert gc.isenabled() and gc.get_freeze_count()
files = {name: module.__file__ for name, module in sys.modules.items() if getattr(module, "__file__", None)}
print(json.dumps({"files": files, "compiled": compiled}))
"""


def layers_of(document: dict[str, Any], function: str) -> list[str]:
    layers = document["Globals"]["Function"]["Layers"] + document["Resources"][function]["Properties"].get("Layers", [])
    return [layer["Ref"] for layer in layers]


def files_in(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_every_function_and_layer_is_built(artifacts: Path, stack: Template) -> None:
    assert set(stack.functions) == set(FUNCTIONS)
    assert {path.name for path in artifacts.iterdir() if path.is_dir()} == {*FUNCTIONS, *LAYERS}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_starts_with_what_it_needs_from_its_artifact_alone_and_compiles_nothing(
    artifacts: Path, document: dict[str, Any], stack: Template, function: str, tmp_path: Path
) -> None:
    runtime = tmp_path / "runtime"
    runtime.mkdir()
    for name in RUNTIME:
        (runtime / name).symlink_to(Path(sysconfig.get_path("purelib")) / name)
    path = [artifacts / function, *(artifacts / layer / "python" for layer in layers_of(document, function)), runtime]
    # Isolated from this environment's packages, and from a folder in which the project's own `shared` can't be found; and as on
    # Lambda, nothing can be written to an artifact.
    started = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-W", "error", "-c", START, json.dumps([str(folder) for folder in path])],
        cwd=tmp_path,
        env=stack.functions[function].environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert started.returncode == 0, started.stderr
    answer = json.loads(started.stdout.splitlines()[-1])
    assert answer["files"]["app"] == str(artifacts / function / "app.py")
    places = (str(artifacts), str(runtime))
    packed = {name for name, file in answer["files"].items() if file.startswith(places)}
    assert {name.partition(".")[0] for name in packed} <= STARTS_WITH | STARTS_WITH_MORE.get(function, set())
    if function not in MAY_IMPORT_BOTOCORE:
        assert not [name for name in packed if name.startswith("botocore.")]
    assert not packed & DESCRIPTION
    assert not [file for file in answer["compiled"] if file.startswith(places[0])]


@pytest.mark.parametrize("which", ["artifacts", "other_artifacts"])
def test_machine_code_is_for_the_requested_architecture(which: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(which)
    machines: dict[str, int] = {}
    for name in files_in(folder):
        with (folder / name).open("rb") as file:
            head = file.read(20)
        if head.startswith(b"\x7fELF"):
            machines[str(name)] = struct.unpack_from("<H", head, 18)[0]
        assert head.startswith(b"\x7fELF") or not re.search(r"\.so(\.|$)", name.name), name
    for package in ("psycopg_binary/", "psycopg_binary.libs/", "pydantic_core/", "cryptography/", "typst/"):
        assert any(f"/{package}" in name for name in machines), package
    own = ELF_MACHINES[platform.machine()]
    assert set(machines.values()) == ({own} if which == "artifacts" else set(ELF_MACHINES.values()) - {own}), machines


@pytest.mark.parametrize("which", ["artifacts", "other_artifacts"])
def test_all_python_is_compiled_and_never_compared_with_its_source(which: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(which)
    sources = [folder / name for name in files_in(folder) if name.suffix == ".py"]
    assert sources
    for source in sources:
        compiled = source.parent / "__pycache__" / f"{source.stem}.{sys.implementation.cache_tag}.pyc"
        # By PEP 552 the second word of a .pyc is 1 when Python is to believe it without a look at the source.
        assert struct.unpack_from("<I", compiled.read_bytes(), 4)[0] == 1, compiled


def test_both_architectures_have_the_same_python(artifacts: Path, other_artifacts: Path) -> None:
    """What is tested on this machine is what runs on the other one, but for machine code."""
    folders = (artifacts, other_artifacts)
    here, there = ({name for name in files_in(folder) if name.suffix == ".py"} for folder in folders)
    assert here == there


def test_the_layer_under_every_function_tells_of_changed_parameters(artifacts: Path) -> None:
    """Without it a parameter's new value would reach no alias: SAM makes a new version for code and template alone."""
    told = (artifacts / "SharedLayer" / "parameters.cksum").read_text()
    file = PROJECT / "samconfig.toml"
    assert told == subprocess.run(["cksum", file.name], cwd=file.parent, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("layer", "package"), [("SharedLayer", "shared"), ("MigrationsLayer", "migrations")])
def test_layer_of_our_own_holds_the_package_and_nothing_else(artifacts: Path, layer: str, package: str) -> None:
    assert [path.name for path in (artifacts / layer / "python").iterdir()] == [package]
    packed = files_in(artifacts / layer / "python" / package)
    assert packed == files_in(PROJECT / package)
    # SAM packs whatever lies in the folder, so that tests and the caches of tools must not lie there.
    assert not [name for name in packed if any(part.startswith((".", "test")) for part in name.parts)]


def test_no_name_is_packed_twice(artifacts: Path) -> None:
    places: dict[str, list[str]] = {}
    for place in [*(f"{layer}/python" for layer in LAYERS), "Migrate"]:
        for path in (artifacts / place).iterdir():
            if path.name not in ("requirements.txt", "__pycache__"):
                places.setdefault(path.name, []).append(place)
    assert not {name: where for name, where in places.items() if len(where) > 1}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_function_with_its_layers_is_within_the_limit_of_lambda(artifacts: Path, document: dict[str, Any], function: str) -> None:
    parts = [artifacts / part for part in [function, *layers_of(document, function)]]
    assert sum((part / name).stat().st_size for part in parts for name in files_in(part)) < MAX_UNZIPPED_BYTES
