"""How long functions take to start, as they are deployed, in Lambda's runtime under its emulator."""

import json
import re
import shutil
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from compileall import compile_dir
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from py_compile import PycInvalidationMode
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from local import aws, keys, template
from local.child import aws_environment
from local.service import parameters
from local.template import Template
from tests.bench.report import Claim, Plot, Report, Spread, Table, console, database, interleaved, ratio
from tests.build.test_emulator import WARM, logical_id
from tests.conftest import as_role
from tests.integration.test_event_files import ATTEMPT, UID, WAY
from tests.support.emulator import PROJECT, Place, stand_in
from tests.support.service import Service

ROUNDS = 9
#: Events after the first one.
TIMES = 10
BUILD = PROJECT / ".aws-sam" / "build"
#: The event that each function is started by; the certificate in a browser is one more, since it loads what makes pages.
EVENTS = {logical_id(example): example for example in WARM} | {
    "OutboxRelay": "outbox_relay/every_minute",
    "QuizMaintenance": "quiz_maintenance/every_minute",
}
BROWSER = "certificate_api/verify_certificate_in_browser"
HANDLER = "shared.entrypoint.handler"
#: Seconds that these functions leave unused; given no more, they look once and are done.
MARGINS = {"OutboxRelay": 5, "QuizMaintenance": 15}

TEXT = f"""\
What `make build` packs, in AWS's Runtime Interface Emulator with `awslambdaric`, Lambda's own runtime client for Python: the
function in one folder, its layers unpacked in another as at `/opt`, the runtime in a third. Each start is a process of its own;
{ROUNDS} rounds, in which all cases take turns. **Init** is the emulator's `INIT REPORT`: Python's own start and the imports. It
contains neither fetching the package and making the sandbox, which Lambda does before, nor the connection to the database, which
the first event opens. The files are in the page cache. Lambda gives 1,024 MB a little over half a virtual CPU, so expect longer
starts there, and measure them there (`Init Duration` in the log line `REPORT`).

- **Libraries alone**: a function that is generated for each of ours, with as many routes at the same paths and as many pydantic
  models with as many fields (all of them plain texts), which imports psycopg, pydantic and of Powertools what ours does: the
  resolver with the same validation, Logger and Metrics. It has no code beyond that, and is compiled like ours. It is what a
  function of this size on these libraries takes.
- **Collecting garbage**: ours entered at `app.handler`. Lambda enters at `shared.entrypoint.handler`, which keeps Python from
  looking for garbage among what is being imported.
- **Not compiled**: the same artifact and layers without compiled files, which is what `sam build` alone packs. Lambda's
  `/var/task` and `/opt` can't be written to, so that each start compiles all that it imports. Python's own library and the
  runtime are compiled in every case, as on Lambda.
- **First event**: from its arrival in the started function to its answer, with PostgreSQL on the same computer and without TLS.
  It opens the connection, and a request makes the validators of its route. **Later**: the median of {TIMES} more of the same.
- **Memory**: resident, after the first event.

What shortens the start: all Python is compiled ahead and never compared with its source; nothing of AWS and no tracing library
is loaded where somebody waits; typst, the signing of credentials, JSON-LD, Jinja and boto3 are loaded by the requests that need
them; no garbage is looked for. `tests/build/test_artifacts.py` fails when an artifact loads more than it should, or compiles.

What did not pay: to build pydantic's models at first use (`defer_build`) took 3 % off the start, up to half of which the first
request paid back, on a processor that Lambda cuts down by then. What else nobody needs here is the libraries' own: psycopg and
Powertools import asyncio, and Powertools the resolvers of every other service.
"""


@dataclass(frozen=True)
class Case:
    """One way to start a function: where it is packed, and the event that starts it."""

    place: Place
    function: str
    packed: str
    example: str
    handler: str = HANDLER


class Bench:
    """The deployed functions, each started as often as asked, on a database in which a learner has gone most of the way."""

    def __init__(self, database_url: str, folder: Path, endpoint: str) -> None:
        self.service = Service(database_url)
        keys.make(folder)
        values = parameters("http://127.0.0.1:3000", as_role(database_url, "learner_progress_app"), folder)
        self.template: Template = template.read(values, endpoint, BUILD / "template.yaml")
        aws.create(self.template, endpoint)
        self.environment = {"PYTHONDONTWRITEBYTECODE": "1"} | aws_environment(endpoint)
        self.folder = folder
        self.compiled = self._place("compiled", lambda source, target: target.symlink_to(source))
        self.plain = self._place("plain", lambda source, target: shutil.copytree(source, target, ignore=_compiled))
        self.first: dict[Case, list[float]] = defaultdict(list)
        self.later: dict[Case, list[float]] = defaultdict(list)
        self.memory: dict[Case, list[float]] = defaultdict(list)

    def _place(self, name: str, pack: Callable[[Path, Path], object]) -> Place:
        folder = self.folder / name
        packed = folder / "packed"
        packed.mkdir(parents=True)
        for source in BUILD.iterdir():
            if source.is_dir():
                pack(source, packed / source.name)
        return Place(folder, packed)

    def start(self, case: Case) -> float:
        """Start a function by an event, and send that some times more; gives the milliseconds of its init."""
        function = self.template.functions[case.function]
        environment = function.environment | self.environment
        if case.function == "Migrate":
            environment["DATABASE_URL"] = self.service.database_url
        timeout = MARGINS.get(case.function, function.timeout)
        with case.place.emulator(
            case.packed, case.handler, function.layers, timeout, function.memory, environment, watched=False
        ) as emulator:
            event = self._event(case.example)
            for number in range(1 + TIMES):
                answer = emulator.invoke(event)
                assert "errorType" not in answer, (case, answer, emulator.log)
                assert answer.get("statusCode", 200) == 200, (case, answer)
                if number == 0:
                    (python,) = psutil.Process(emulator.pid).children(recursive=True)
                    self.memory[case].append(python.memory_info().rss / 1e6)
            first, *later = emulator.invoke_milliseconds
            self.first[case].append(first)
            self.later[case].append(statistics.median(later))
            return emulator.init_milliseconds

    def _event(self, example: str) -> str:
        text = (PROJECT / "events" / f"{example}.json").read_text()
        rows = self.service.rows("SELECT certificate_uid FROM certificates")
        return text.replace(UID, rows[0]["certificate_uid"]) if rows else text

    def go_the_way(self) -> None:
        """Let a learner go the way of the examples as far as the certificate, through the functions."""
        end = WAY.index(("certificate_worker/enrollment_completed", None)) + 1
        attempt = ""
        for name, examples in groupby((example for example, _ in WAY[1:end]), logical_id):
            function = self.template.functions[name]
            with self.compiled.emulator(
                name, HANDLER, function.layers, 60, function.memory, function.environment | self.environment, watched=False
            ) as emulator:
                for example in examples:
                    event = self._event(example)
                    if example in ("quiz_api/save_answers", "quiz_api/submit_attempt"):
                        event = event.replace(ATTEMPT, attempt)
                    answer = emulator.invoke(event)
                    assert "errorType" not in answer, (example, answer)
                    if example == "quiz_api/start_attempt":
                        attempt = json.loads(answer["body"])["id"]

    def pack(self, name: str, source: str) -> None:
        """Pack a module `app` as a function of this name, compiled."""
        folder = self.compiled.artifacts / name
        folder.mkdir()
        (folder / "app.py").write_text(source)
        compile_dir(folder, quiet=1, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)

    def python(self, function: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run Python with the import path that a function has on Lambda."""
        layers = self.compiled.layers(self.template.functions[function].layers) / "python"
        path = f"{BUILD / function}:{layers}:{self.compiled.runtime}"
        return subprocess.run(
            [Path(sys.executable).resolve(), "-S", "-s", *arguments],
            cwd=self.folder,
            env=self.template.functions[function].environment | self.environment | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )


def _compiled(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name == "__pycache__"}


# --------------------------------------------------------------------------------------------------- the libraries alone

#: Prints a function's routes and the numbers of its models' fields.
SHAPE = """
import json, app
from pydantic import BaseModel

def models(kind):
    for model in kind.__subclasses__():
        if model.__module__.split(".")[0] in ("app", "shared"):
            yield len(model.model_fields)
        yield from models(model)

routes = app.app._static_routes + app.app._dynamic_routes
print(json.dumps({"routes": [[route.method, route.path] for route in routes], "models": list(models(BaseModel))}))
"""

LIBRARIES = """\
import psycopg
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.openapi.params import Body, Path, Query
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import BaseModel

logger = Logger()
metrics = Metrics()
app = APIGatewayHttpResolver(enable_validation=True)
"""


def libraries_alone(routes: list[tuple[str, str]], models: list[int]) -> str:
    """The code of a function with these routes (method, path) and with models of so many fields, which does nothing else."""
    parts = [LIBRARIES]
    for number, fields in enumerate(models):
        body = [f"    field_{n}: str" for n in range(fields)] or ["    pass"]
        parts += ["", "", f"class Model{number}(BaseModel):", *body]
    for number, (method, path) in enumerate(routes):
        names = ", ".join(f"{name}: str" for name in re.findall("<([a-z_]+)>", path))
        parts += ["", "", f"@app.{method.lower()}({path!r})", f"def route_{number}({names}) -> Response[str]:"]
        parts += ['    return Response(200, content_type="application/json", body="{}")']
    parts += ["", "", "@logger.inject_lambda_context", "def handler(event: dict, context: LambdaContext) -> dict:"]
    parts += ["    return app.resolve(event, context)", ""]
    return "\n".join(parts)


# ------------------------------------------------------------------------------------------------------------- the imports

#: Which packages belong together; of all others each is its own.
LIBRARY = {
    "psycopg_binary": "psycopg",
    "psycopg_c": "psycopg",
    "pydantic_core": "pydantic",
    "annotated_types": "pydantic",
    "typing_inspection": "pydantic",
    "typing_extensions": "pydantic",
    "aws_lambda_powertools": "Powertools",
    "jmespath": "Powertools",
    "botocore": "Powertools",
    "app": "this service",
    "shared": "this service",
}
#: Where what the runtime client has imported ends.
MARK = "-- the function --"
IMPORT = f"import awslambdaric.bootstrap, sys; sys.stderr.write('{MARK}\\n'); import {HANDLER.rpartition('.')[0]}"


def imports(bench: Bench, function: str) -> dict[str, tuple[int, float, float]]:
    """What a function imports after the runtime: by package its number of modules, and the milliseconds of these and of what
    they import first of Python's own library."""
    _, _, text = bench.python(function, "-X", "importtime", "-c", IMPORT).stderr.partition(MARK)
    number: Counter[str] = Counter()
    own: Counter[str] = Counter()
    pythons: Counter[str] = Counter()
    # Whoever imports stands after what it imports, and less far to the right.
    above: list[tuple[int, str]] = []
    lines: list[tuple[str, str, str]] = re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|( +)(\S+)$", text, re.MULTILINE)
    for microseconds, indent, name in reversed(lines):
        while above and above[-1][0] >= len(indent):
            above.pop()
        package = name.partition(".")[0]
        if package in sys.stdlib_module_names or package.startswith("_sysconfigdata"):
            importer = above[-1][1] if above else LIBRARY["app"]
            pythons[importer] += int(microseconds)
        else:
            importer = LIBRARY.get(package, package)
            own[importer] += int(microseconds)
            number[importer] += 1
        above.append((len(indent), importer))
    return {package: (number[package], own[package] / 1000, pythons[package] / 1000) for package in own}


def imports_of(bench: Bench, function: str) -> tuple[Table, Plot]:
    runs = [imports(bench, function) for _ in range(ROUNDS)]
    packages = {package: [statistics.median(run[package][n] for run in runs) for n in range(3)] for package in runs[0]}
    rows = sorted(packages.items(), key=lambda item: -sum(item[1][1:]))
    total = sum(sum(times[1:]) for _, times in rows)
    table = Table(
        f"What {function} imports",
        ["package", "modules", "ms, its own", "ms, of Python's library", "share"],
        [[name, int(n), own, python, f"{(own + python) / total:.0%}"] for name, (n, own, python) in rows],
        "By `python -X importtime`, which itself takes time; medians. A module of Python's library counts for the package that "
        "imports it first, and what the runtime client has imported before counts for none.",
    )
    series = {"its own": [(n, t[1]) for n, t in rows], "of Python's library": [(n, t[2]) for n, t in rows]}
    return table, Plot(f"Imports of {function}", "bars", "", "milliseconds", series)


# --------------------------------------------------------------------------------------------------------------- sizes


def sizes(bench: Bench) -> tuple[Table, dict[str, tuple[float, float]]]:
    """The layers' sizes, and each function's with its layers: MB unpacked and zipped."""
    each: dict[str, tuple[float, float]] = {}
    for folder in sorted(path for path in BUILD.iterdir() if path.is_dir()):
        unpacked = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        zipped = Path(shutil.make_archive(str(bench.folder / "zipped"), "zip", folder)).stat().st_size
        each[folder.name] = unpacked / 1e6, zipped / 1e6
    functions: dict[str, tuple[float, float]] = {}
    for name, function in bench.template.functions.items():
        unpacked, zipped = zip(*(each[part] for part in (name, *function.layers)), strict=True)
        functions[name] = sum(unpacked), sum(zipped)
    rows = [[name, *size] for name, size in each.items() if name not in functions]
    own = max((size for name, size in each.items() if name in functions and name != "Migrate"), key=lambda size: size[0])
    rows += [["own code of `Migrate`, with yoyo", *each["Migrate"]], ["own code of any other function, at most", *own]]
    note = "Lambda limits a function with its layers to 262 MB (250 MiB) unpacked."
    return Table("Sizes", ["", "unpacked, MB", "zipped, MB"], rows, note), functions


# ----------------------------------------------------------------------------------------------------------- the whole


def run() -> Report:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="learner-progress-bench-")))
        url = stack.enter_context(database())
        endpoint = stack.enter_context(stand_in(folder / "aws.log"))
        return measure(Bench(url, folder, endpoint))


def measure(bench: Bench) -> Report:
    console.print("a learner goes the way of the examples")
    bench.go_the_way()
    names = sorted(bench.template.functions)
    apis = [name for name in names if name.endswith("Api")]
    bench.pack("Nothing", "def handler(event, context):\n    return {}\n")
    nothing = Case(bench.compiled, "ReportApi", "Nothing", EVENTS["ReportApi"], "app.handler")
    ours = {name: Case(bench.compiled, name, name, EVENTS[name]) for name in names}
    plain = {name: Case(bench.plain, name, name, EVENTS[name]) for name in apis}
    collecting = {name: Case(bench.compiled, name, name, EVENTS[name], "app.handler") for name in apis}
    alone: dict[str, Case] = {}
    shapes: dict[str, Any] = {}
    for name in apis:
        shapes[name] = json.loads(bench.python(name, "-c", SHAPE).stdout)
        packed = f"{name}Libraries"
        bench.pack(packed, libraries_alone(**shapes[name]))
        alone[name] = Case(bench.compiled, name, packed, EVENTS[name], "app.handler")
    browser = Case(bench.compiled, "CertificateApi", "CertificateApi", BROWSER)
    cases = [nothing, browser]
    for name in names:
        cases += [packed[name] for packed in (alone, ours, collecting, plain) if name in packed]
    for case in cases:
        # Once without counting, so that all files are in the page cache.
        bench.start(case)
    for kept in (bench.first, bench.later, bench.memory):
        kept.clear()
    found = interleaved({str(n): partial(bench.start, case) for n, case in enumerate(cases)}, ROUNDS, "starting")
    init = {case: found[str(n)] for n, case in enumerate(cases)}

    over_alone = {name: ratio(init[ours[name]], init[alone[name]]) for name in apis}
    over_plain = {name: ratio(init[ours[name]], init[plain[name]]) for name in apis}
    starts = Table(
        "Init of what learners wait for, milliseconds",
        [
            *["function", "routes", "models", "libraries alone", "this service", "collecting garbage", "not compiled"],
            *["over libraries alone", "over not compiled"],
        ],
        note=f"Nothing imported: {Spread.of(init[nothing]).median:.0f} ms.",
    )
    for name in apis:
        case = (alone[name], ours[name], collecting[name], plain[name])
        shape = [len(shapes[name]["routes"]), len(shapes[name]["models"])]
        starts.rows.append([f"`{name}`", *shape, *(Spread.of(init[c]) for c in case), over_alone[name], over_plain[name]])
    layers, functions = sizes(bench)
    each = Table(
        "Every function",
        ["function", "init, ms", "first event, ms", "later, ms", "memory, MB", "unpacked, MB", "zipped, MB", "the event"],
        note="With all layers. The relay and the maintenance of quizzes go on as long as they may; an event says nothing. "
        "The first page for a browser loads Jinja and compiles the template.",
    )
    for name, case in [*ours.items(), ("CertificateApi", browser)]:
        events = ["", ""] if name in MARGINS else [Spread.of(bench.first[case]), Spread.of(bench.later[case])]
        row = [f"`{name}`", Spread.of(init[case]), *events, Spread.of(bench.memory[case]).median, *functions[name]]
        each.rows.append([*row, f"`{case.example.partition('/')[2]}`"])
    each.rows.append(["nothing imported", Spread.of(init[nothing]), "", "", Spread.of(bench.memory[nothing]).median, "", "", ""])

    slowest = max(apis, key=lambda name: statistics.median(init[ours[name]]))
    imported, bars = imports_of(bench, slowest)
    worst_alone = max(apis, key=lambda name: over_alone[name].median)
    worst_plain = max(apis, key=lambda name: over_plain[name].median)
    series = {
        title: [(name, statistics.median(init[packed[name]])) for name in apis]
        for title, packed in (("libraries alone", alone), ("this service", ours), ("not compiled", plain))
    }
    return Report(
        "coldstart",
        "Cold start",
        TEXT,
        [starts, each, layers, imported],
        [
            Claim(f"Init over that of the libraries alone, the worst: `{worst_alone}`", over_alone[worst_alone], 1.15, "at most"),
            Claim(f"Init over that of what is not compiled, the worst: `{worst_plain}`", over_plain[worst_plain], 0.5, "at most"),
        ],
        [Plot("Init of what learners wait for", "bars", "", "milliseconds", series), bars],
    )
