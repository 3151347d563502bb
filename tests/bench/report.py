"""What a suite of measurements found, and how its cases take turns.

Single figures of a shared computer move by a factor of two between minutes. So the cases that are compared take turns within each
round, a ratio is that of one round, and what is told of either is the median of all rounds with the least and the greatest.
"""

import gc
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from rich.console import Console
from rich.progress import track
from rich.table import Table as Printed

from local import postgres

#: Where the results are kept, one file for each suite; `tests.bench.page` makes `docs/performance.md` of them.
FOLDER = Path(__file__).parents[2] / "docs" / "performance"

console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several rounds, the least and the greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(slots=True)
class Table:
    """Rows to show; each number of a cell is written as its size asks for, a text is taken as it is."""

    title: str
    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """A ratio within one run, beside the bound that it is to keep."""

    what: str
    ratio: Spread
    bound: float
    kind: Literal["at most", "at least"]

    @property
    def holds(self) -> bool:
        return self.ratio.median <= self.bound if self.kind == "at most" else self.ratio.median >= self.bound


@dataclass(frozen=True, slots=True)
class Plot:
    """Bars: each series has one value for each of `x`; lines: each series has points (x, y)."""

    title: str
    kind: Literal["bars", "lines"]
    x_label: str
    y_label: str
    #: Name of a series to its points; the x of bars are texts.
    series: dict[str, list[tuple[Any, float]]]
    log_x: bool = False
    log_y: bool = False


@dataclass(slots=True)
class Report:
    """All that one suite found. `text` (Markdown) says what was measured and what each case includes."""

    suite: str
    title: str
    text: str
    tables: list[Table] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)

    def save(self) -> None:
        """Keep it for the page, and print it."""
        FOLDER.mkdir(exist_ok=True)
        content = {"measured": datetime.now(UTC).date().isoformat(), "machine": machine()} | asdict(self)
        text = json.dumps(content, indent=1, ensure_ascii=False, default=asdict)
        (FOLDER / f"{self.suite}.json").write_text(text + "\n")
        self.show()

    def show(self) -> None:
        out = Console()
        for table in self.tables:
            printed = Printed(*table.columns, title=table.title, caption=table.note or None)
            for row in table.rows:
                printed.add_row(*map(cell, row))
            out.print(printed)
        for claim in self.claims:
            verdict = "[green]yes[/green]" if claim.holds else "[red]no[/red]"
            out.print(f"{claim.what}: {cell(claim.ratio)}, {claim.kind} {claim.bound:g}: {verdict}")


def cell(value: Any) -> str:
    """A cell as text: a number with three digits that count, a spread with its least and greatest."""
    match value:
        case Spread():
            return f"{cell(value.median)} [{cell(value.least)}..{cell(value.greatest)}]"
        case {"median": median, "least": least, "greatest": greatest}:
            return cell(Spread(median, least, greatest))
        case float() if value and abs(value) < 100:
            return f"{value:.3g}"
        case float() | int():
            return f"{value:,.0f}"
        case _:
            return str(value)


def interleaved(cases: Mapping[str, Callable[[], float]], rounds: int, what: str = "measuring") -> dict[str, list[float]]:
    """Let all cases take turns, `rounds` times; the order turns round each time. Each gives its own figure."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    order = list(cases)
    for number in track(range(rounds), what, console=console, disable=not console.is_terminal):
        for name in order if number % 2 == 0 else reversed(order):
            gc.collect()
            found[name].append(cases[name]())
    return found


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """How the ratio of two cases lies over the rounds."""
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


@contextmanager
def database(**settings: str) -> Generator[str]:
    """A durable PostgreSQL of its own with the service's schema; yields the URL, which DATABASE_URL is too.

    Its settings are PostgreSQL's defaults but for those given here, as `shared_buffers="4GB"`.
    """
    with (
        TemporaryDirectory(prefix="learner-progress-bench-") as folder,
        database_in(Path(folder) / "data", **settings) as url,
    ):
        yield url


@contextmanager
def database_in(data: Path, durable: bool = True, /, **settings: str) -> Generator[str]:
    """The same in a folder that may hold it already; `durable` as for `postgres.process`."""
    with postgres.server(data, durable=durable, **settings) as url:
        before = os.environ.get("DATABASE_URL")
        os.environ["DATABASE_URL"] = url
        from functions.migrate.app import handler
        from shared import db
        from shared import settings as service_settings
        from tests.support.service import context

        service_settings.database_url.cache_clear()
        handler({}, context("Migrate", 900))
        try:
            yield url
        finally:
            db.close()
            os.environ.pop("DATABASE_URL")
            if before:
                os.environ["DATABASE_URL"] = before
            service_settings.database_url.cache_clear()


def machine() -> dict[str, str]:
    """What it was measured on."""
    model = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    postgresql = subprocess.run([postgres.program("postgres"), "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "processor": f"{os.cpu_count()} of {model or platform.machine()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "postgresql": postgresql.split()[-1],
        "load": f"{os.getloadavg()[1]:.1f}",
    }


def _lines(path: str) -> list[str]:
    place = Path(path)
    return place.read_text().splitlines() if place.exists() else []
