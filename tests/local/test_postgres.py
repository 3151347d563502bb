"""PostgreSQL as a child process."""

import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest

from local import postgres

SECONDS = 30

HOLD = """
import sys
from pathlib import Path
from local.postgres import server
with server(Path(sys.argv[1])) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


def test_data_survive_a_restart(tmp_path: Path) -> None:
    with postgres.server(tmp_path / "a b" / "data") as url, psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 'Žofie' AS name")
    with postgres.server(tmp_path / "a b" / "data") as url, psycopg.connect(url) as connection:
        assert connection.execute("SELECT name FROM kept").fetchone() == ("Žofie",)


def test_it_has_the_settings_that_it_is_given(tmp_path: Path):
    with postgres.server(tmp_path / "data", shared_buffers="16MB", full_page_writes="off") as url, psycopg.connect(url) as conn:
        names = ("shared_buffers", "full_page_writes")
        assert [conn.execute("SELECT current_setting(%s)", [name]).fetchone() for name in names] == [("16MB",), ("off",)]


def test_nothing_stays_behind_a_killed_parent_and_the_next_one_starts(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "data")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().startswith(b"postgresql://")
        processes = psutil.Process(holder.pid).children(recursive=True)
        assert any(process.name() == "postgres" for process in processes)
        holder.kill()
    with postgres.server(tmp_path / "data") as url:
        psycopg.connect(url).close()
    _, alive = psutil.wait_procs(processes, timeout=SECONDS)
    assert not alive


def test_a_stale_pid_file_that_names_another_process_is_no_hindrance(tmp_path: Path) -> None:
    with postgres.server(tmp_path / "data"):
        left = (tmp_path / "data" / "postmaster.pid").read_text()
    # Number 1 is always somebody else.
    (tmp_path / "data" / "postmaster.pid").write_text(left.replace(left.splitlines()[0], "1", 1))
    with postgres.server(tmp_path / "data") as url:
        psycopg.connect(url).close()


def test_one_folder_has_one_server(tmp_path: Path) -> None:
    with postgres.server(tmp_path / "data"), pytest.raises(postgres.PostgresError, match="in use by another process"):
        postgres.server(tmp_path / "data").__enter__()


def test_a_creation_cut_short_is_done_again(tmp_path: Path) -> None:
    (tmp_path / "data.new").mkdir()
    (tmp_path / "data.new" / "PG_VERSION").write_text("18\n")
    with postgres.server(tmp_path / "data") as url:
        psycopg.connect(url).close()


def test_the_end_of_the_log_tells_why_it_does_not_start(tmp_path: Path) -> None:
    with postgres.server(tmp_path / "data"):
        pass
    (tmp_path / "data" / "PG_VERSION").write_text("9.6\n")
    with pytest.raises(postgres.PostgresError, match=r"(?s)data\.log.*incompatible"):
        postgres.server(tmp_path / "data").__enter__()
