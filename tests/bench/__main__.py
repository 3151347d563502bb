"""Measure: python -m tests.bench [suite ...]; without a name, all suites but the long ones and those of other environments."""

import importlib
import os
import sys

os.environ.update(
    POWERTOOLS_SERVICE_NAME="bench",
    POWERTOOLS_METRICS_NAMESPACE="LearnerProgress",
    POWERTOOLS_LOG_LEVEL="CRITICAL",
    RETRY_PATIENCE_SECONDS="20",
)

from tests.bench import page, report

SUITES = ("requests", "batches", "grading", "footprint", "coldstart", "load")
#: What takes longer or needs other projects, each with a target of its own.
APART = ("growth", "peers")


def main(names: list[str]) -> int:
    unknown = set(names) - {*SUITES, *APART}
    if unknown:
        print(f"There is no suite {', '.join(sorted(unknown))}; there are {', '.join((*SUITES, *APART))}.", file=sys.stderr)
        return 2
    missed = 0
    for name in names or SUITES:
        report.console.rule(name)
        found = importlib.import_module(f"tests.bench.{name}").run()
        found.save()
        missed += sum(not claim.holds for claim in found.claims)
    page.write()
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
