"""`python -m local`: the commands behind `make run`, `demo`, `token`, `verify`, `repair` and `clean`."""

import argparse
import os
import select
import signal
import sys
import threading
import uuid
from types import FrameType

from local.child import Child, clean_environment, migrate

LOOK_MILLISECONDS = 500
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(SystemExit):
    """Ctrl-C, a closed terminal, or a request to end."""


def main() -> int:
    """Run a command and return its exit code."""
    arguments = _parser().parse_args()
    if arguments.command == "child":
        _child(arguments.what)
        return 0
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    threading.Thread(target=_watch_terminal, daemon=True).start()
    environment = clean_environment()
    os.environ.clear()
    os.environ.update(environment)
    try:
        return _run(arguments)
    except Interrupted as interrupted:
        # Stopping is how `run` ends; any other command has been cut short.
        return 0 if arguments.command == "run" else int(interrupted.code or 0)


def _run(arguments: argparse.Namespace) -> int:
    """Run a command that a person gave. The imports stand where they are needed, since they take longer than some commands."""
    from local.service import ServiceError, default_dir, stop

    try:
        match arguments.command:
            case "run":
                from local.run import run

                run(arguments.port, default_dir())
            case "demo":
                from local import demo

                return demo.main(arguments.data, arguments.json, arguments.shuffle)
            case "token":
                from local import tokens

                print(tokens.issue(tokens.signing_key(default_dir()), str(arguments.sub), arguments.scope))
            case "verify":
                from local import verify

                return verify.main()
            case "repair":
                from local import repair

                return repair.main(apply=arguments.apply)
            case _:
                stop(default_dir())
    except ServiceError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local", description="The service on one computer.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    run = commands.add_parser("run", help="run the service until Ctrl-C")
    run.add_argument("--port", type=_port, default=3000, help="port of the HTTP API (default: 3000)")
    demo = commands.add_parser("demo", help="replay real learners")
    demo.add_argument("--data", help="folder in the format of the Open University Learning Analytics Dataset")
    demo.add_argument("--json", metavar="FILE", help="file for the final counts")
    demo.add_argument("--shuffle", type=int, metavar="SEED", help="shuffle and double the progress and quiz events")
    token = commands.add_parser("token", help="print a token that the running service accepts")
    token.add_argument("--sub", type=_uuid, required=True, help="user_id, a UUID")
    token.add_argument("--scope", default="", help="scopes, separated by spaces")
    commands.add_parser("verify", help="look whether everything in the database is right")
    repair = commands.add_parser("repair", help="say what can be mended in the database")
    repair.add_argument("--apply", action="store_true", help="mend it")
    commands.add_parser("stop", help="stop the service if it is running")
    child = commands.add_parser("child")
    child.add_argument("what", nargs="+")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"PORT must be a number from 1 to 65535, not {text!r}")
    return int(text)


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"SUB must be a UUID, such as {uuid.uuid4()}, not {text!r}") from None


def _interrupt(number: int, frame: FrameType | None) -> None:
    # The end takes its course once; a second Ctrl-C must not cut it short.
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise Interrupted(128 + number)


def _watch_terminal() -> None:
    """End this process when its terminal is gone, or the `make` that runs it.

    When `make` is what the terminal runs, as with `ssh -t host make run`, it alone is told of the terminal's end, and then
    waits for us.
    """
    terminal = select.poll()
    if sys.stdout.isatty():
        # Asks for nothing, because a hang-up is reported anyway.
        terminal.register(sys.stdout, 0)
    parent = os.getppid()
    while not terminal.poll(LOOK_MILLISECONDS):
        if "MAKELEVEL" in os.environ and os.getppid() != parent:
            break
    os.kill(os.getpid(), signal.SIGHUP)


def _child(what: list[str]) -> None:
    """Be one of the service's processes. Each imports only what it needs, because all start at once."""
    child = Child()
    match what:
        case ["aws"]:
            from local import aws

            aws.serve(child)
        case ["gateway"]:
            from local import gateway

            gateway.serve(child)
        case ["poll", str(function)]:
            from local import pollers

            pollers.poll(child, function)
        case ["schedule", str(function)]:
            from local import pollers

            pollers.schedule(child, function)
        case ["migrate"]:
            migrate(child)
            child.ready()
        case _:
            raise ValueError(f"no such child: {what}")


if __name__ == "__main__":
    sys.exit(main())
