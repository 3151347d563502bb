"""Migrating in a process of its own, as in Lambda: the real handler, and it can be killed."""

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.support.service import Service

ROOT = Path(__file__).parent.parent.parent
RUN = """
import json, sys
import migrations
from functions.migrate import app
from tests.support.service import context

migrations.__path__[:] = [sys.argv[1]]
print(json.dumps(app.handler({}, context("Migrate", 900))))
"""


@contextmanager
def running(service: Service, folder: Path) -> Generator["subprocess.Popen[str]"]:
    """A process that migrates the service's database by the files of a folder, as its owner."""
    command = [sys.executable, "-c", RUN, str(folder)]
    environment = os.environ | {"DATABASE_URL": service.database_url}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def applied(process: "subprocess.Popen[str]") -> list[str]:
    """What a process has applied, once it is done."""
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(output.splitlines()[-1])["applied"]
