"""What each program here says and hears: it does so many calls of a case when told to, and tells how long each took.

So programs of different environments can take turns. Nothing but the standard library is used, since all of them have this.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping

#: A case: does so many calls and returns the seconds that each took.
type Case = Callable[[int], list[float]]


def answer(cases: Mapping[str, Case]) -> None:
    """Serve until the end of standard input: each line names a case and a number of calls, and a line of seconds answers it."""
    # What is logged and counted is not for whoever reads here.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    print(json.dumps(list(cases)), file=answers, flush=True)
    for line in sys.stdin:
        case, calls = json.loads(line)
        print(json.dumps(cases[case](calls)), file=answers, flush=True)
