"""The one logger and the one set of metrics. No log line holds a name, an answer, a token or a user's id."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import psycopg
from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from shared import trace
from shared.errors import ServiceError

logger = Logger()
metrics = Metrics()

type Handler = Callable[[dict[str, Any], LambdaContext], dict[str, Any]]


class Unexpected(Exception):
    """Something that nobody foresaw; the message says what kind, and the traceback where."""


def unexpected(error: Exception) -> Unexpected:
    """The error as Lambda may log it, which writes the message of whatever a handler raises.

    Messages of libraries repeat what they complain of: PostgreSQL's the row, pydantic's the input. PostgreSQL's first line names
    a constraint or what else was broken, and a value only where it is the value that is bad (class 22).
    """
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    if isinstance(error, psycopg.Error) and error.sqlstate:
        kind += f" {error.sqlstate}" + ("" if error.sqlstate.startswith("22") else f": {error.diag.message_primary}")
    return Unexpected(kind).with_traceback(error.__traceback__)


def observed(*, http: bool = False) -> Callable[[Handler], Handler]:
    """Decorate a Lambda handler: log lines carry the request's id and its trace's, and what was counted is written at its end."""

    def decorate(handler: Handler) -> Handler:
        @logger.inject_lambda_context
        @wraps(handler)
        def wrapped(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
            if http:
                logger.append_keys(correlation_id=event["requestContext"]["requestId"])
            # Of all functions' events only HTTP requests have headers; the gateway gives their names in lower case.
            trace.begin((event.get("headers") or {}).get("traceparent") if http else None)
            logger.append_keys(trace_id=trace.trace_id(trace.current()))
            try:
                return handler(event, context)
            except (ServiceError, Unexpected):
                # Its message is ours.
                raise
            except Exception as error:
                raise unexpected(error) from None
            finally:
                # Only then: with nothing counted, flushing warns.
                if metrics.metric_set:
                    metrics.flush_metrics()

        return wrapped

    return decorate


def count(name: str, value: int = 1) -> None:
    """Add to a business metric (CloudWatch embedded metric format); zero is not written."""
    if value:
        metrics.add_metric(name, MetricUnit.Count, value)


def measure_seconds(name: str, value: float) -> None:
    """Note a duration as a metric."""
    metrics.add_metric(name, MetricUnit.Seconds, value)
