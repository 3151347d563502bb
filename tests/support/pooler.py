"""PgBouncer in transaction mode before the database, and what of our statements would pin a connection of RDS Proxy.

Debian's PgBouncer 1.18 is stricter than RDS Proxy: what the proxy answers by pinning a connection, it refuses or lets leak to
the next client.
"""

import os
import pwd
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from local.postgres import free_port

ROLES = ("learner_progress", "learner_progress_app", "learner_progress_relay", "learner_progress_report")

#: What makes RDS Proxy pin a connection (https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/rds-proxy-pinning.html).
#: It does not look into the functions of the database, nor at the defaults of columns.
PINS = re.compile(
    r"\A\s*(SET\b|RESET\b|PREPARE\b|EXECUTE\b|DEALLOCATE\b|DISCARD\b|DECLARE\b|LISTEN\b|LOAD\b"
    r"|CREATE\s+(GLOBAL\s+|LOCAL\s+)?TEMP)"
    r"|\bpg_(try_)?advisory_lock(_shared)?\s*\(|\b(set_config|nextval|setval|currval|lastval)\s*\(",
    re.IGNORECASE,
)
#: Bytes of a statement beyond which it pins as well.
LONGEST = 16 * 1024


@contextmanager
def pooled(url: str, folder: Path, *, connections: int = 40, patience: int = 10) -> Generator[str]:
    """PgBouncer before the server of this URL; yields the URL of the same database through it.

    connections: to the database; who finds all of them in use waits for `patience` seconds.
    """
    program = shutil.which("pgbouncer")
    if program is None:
        raise RuntimeError("there is no pgbouncer: apt-get install pgbouncer")
    parts = urlsplit(url)
    port = free_port()
    (folder / "users.txt").write_text("".join(f'"{role}" ""\n' for role in ROLES))
    (folder / "pgbouncer.ini").write_text(
        f"""
        [databases]
        * = host={parts.hostname} port={parts.port}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        admin_users = learner_progress
        auth_type = trust
        auth_file = {folder}/users.txt
        pool_mode = transaction
        max_client_conn = 500
        default_pool_size = {connections}
        server_idle_timeout = 5
        server_login_retry = 0
        query_wait_timeout = {patience}
        """.replace("        ", "")
    )
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        # Like PostgreSQL, it refuses to run as root.
        identity = {"user": pwd.getpwnam("nobody").pw_uid, "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}
        for place in (folder, *folder.parents):
            place.chmod(place.stat().st_mode | 0o005)
    with (folder / "pgbouncer.log").open("ab") as log:
        process = subprocess.Popen([program, "pgbouncer.ini"], cwd=folder, stdout=log, stderr=log, **identity)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PgBouncer did not start:\n{(folder / 'pgbouncer.log').read_text()}") from None
                time.sleep(0.05)
        user = parts.netloc.rpartition("@")[0]
        yield urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{port}"))
    finally:
        process.terminate()
        process.wait(10)


def statements(log: str) -> list[tuple[str, str]]:
    """Role and text of each statement in a log that was written with `log_line_prefix = '@@%u@@'` and `log_statement = all`."""
    found: list[tuple[str, str]] = []
    for entry in re.split(r"^@@", log, flags=re.MULTILINE)[1:]:
        role, _, rest = entry.partition("@@")
        match = re.match(r"LOG:\s+(?:statement|execute [^:]*): (.*)", rest, re.DOTALL)
        if match:
            found.append((role, match[1]))
    return found
