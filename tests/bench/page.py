"""`docs/performance.md` and its plots, from what the suites found."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

from tests.bench import report

PAGE = report.FOLDER.with_suffix(".md")
#: In this order; what is not measured yet is left out.
ORDER = ("requests", "peers", "batches", "grading", "footprint", "coldstart", "growth", "load")

OPENING = """\
# Performance

`make bench` measures all this and writes this page; `make bench-growth` and `make bench-peers` the parts of theirs. Each figure
stands beside its limit, measured in the same run: single figures of a shared computer move by a factor of two between
minutes. So the cases take turns within each round, a ratio is that of one round, and each cell is the median of all rounds with
the least and the greatest in brackets. What is promised of a ratio stands below each table.
"""


def write() -> None:
    """Write the page and the plots of all suites that have been measured."""
    mpl.use("svg")
    # The same figures make the same file.
    mpl.rcParams.update({"svg.hashsalt": "learner-progress", "svg.fonttype": "none", "font.family": "sans-serif"})
    parts = [OPENING]
    for suite in ORDER:
        source = report.FOLDER / f"{suite}.json"
        if source.exists():
            parts.append(_section(json.loads(source.read_text())))
    PAGE.write_text("\n".join(parts))


def _section(found: dict[str, Any]) -> str:
    machine = found["machine"]
    lines = [f"## {found['title']}", "", found["text"].strip(), ""]
    for table in found["tables"]:
        lines += [f"**{table['title']}**", ""] if table["title"] else []
        lines += ["| " + " | ".join(table["columns"]) + " |", "|" + " --- |" * len(table["columns"])]
        lines += ["| " + " | ".join(report.cell(value).replace("|", "\\|") for value in row) + " |" for row in table["rows"]]
        lines += ["", table["note"], ""] if table["note"] else [""]
    if found["claims"]:
        lines += ["| promised | seen | bound | kept |", "| --- | --- | --- | --- |"]
        for claim in found["claims"]:
            made = report.Claim(claim["what"], report.Spread(**claim["ratio"]), claim["bound"], claim["kind"])
            lines.append(
                f"| {made.what} | {report.cell(made.ratio)} | {made.kind} {made.bound:g} | {'yes' if made.holds else '**no**'} |"
            )
        lines.append("")
    for number, plot in enumerate(found["plots"], 1):
        name = f"{found['suite']}-{number}.svg"
        _draw(plot, report.FOLDER / name)
        lines += [f"![{plot['title']}]({report.FOLDER.name}/{name})", ""]
    lines += [
        f"Measured {found['measured']} on {machine['processor']}, {machine['memory']}; PostgreSQL {machine['postgresql']}, "
        f"Python {machine['python']}, load {machine['load']} from it and others.",
        "",
    ]
    return "\n".join(lines)


def _draw(plot: dict[str, Any], place: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    if plot["kind"] == "bars":
        names = list(dict.fromkeys(str(x) for points in plot["series"].values() for x, _ in points))
        thick = 0.8 / len(plot["series"])
        for n, (series, points) in enumerate(plot["series"].items()):
            places = [names.index(str(x)) + (n - (len(plot["series"]) - 1) / 2) * thick for x, _ in points]
            bars = axes.barh(places, [y for _, y in points], thick, label=series)
            axes.bar_label(bars, [report.cell(float(y)) for _, y in points], padding=3, fontsize=8)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel(plot["y_label"])
        axes.set_ylabel(plot["x_label"])
        if plot["log_y"]:
            axes.set_xscale("log")
    else:
        for series, points in plot["series"].items():
            axes.plot([x for x, _ in points], [y for _, y in points], marker="o", markersize=3, label=series)
        axes.set_xlabel(plot["x_label"])
        axes.set_ylabel(plot["y_label"])
        if plot["log_x"]:
            axes.set_xscale("log")
        if plot["log_y"]:
            axes.set_yscale("log")
    axes.set_title(plot["title"])
    axes.spines[["top", "right"]].set_visible(False)
    if len(plot["series"]) > 1:
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(place, metadata={"Date": None, "Creator": None}, transparent=False)
    plt.close(figure)


if __name__ == "__main__":
    write()
