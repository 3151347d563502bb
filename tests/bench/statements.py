"""What suites need that call the service's own functions."""

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from typing import Any


class Statements:
    """A connection that only notes what it is to execute."""

    def __init__(self) -> None:
        self.executed: list[tuple[Any, Any, bool | None]] = []

    def cursor(self, **_: Any) -> "Statements":
        return self

    def execute(self, query: Any, parameters: Any = None, binary: bool | None = None) -> "Statements":
        self.executed.append((query, parameters, binary))
        return self


def quietly[Result](work: Callable[[], Result]) -> Result:
    """Without the metrics that a function prints."""
    with redirect_stdout(StringIO()):
        return work()
