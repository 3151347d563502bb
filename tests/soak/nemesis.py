"""The process that runs the database, on a way in that it can cut, and lets faults strike: one after the other, logged."""

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg.sql import SQL, Identifier

from local import postgres
from tests.soak.world import Dice, Log, World, now


class Way:
    """A TCP proxy with an address that stays, to a database whose port changes each time that it is started."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port: int = self._listener.getsockname()[1]
        self.target = 0
        #: The share of the database's answers that are lost together with their connection, once what they tell of is done.
        self.losing = 0.0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            near, _ = self._listener.accept()
            threading.Thread(target=self._connect, args=[near], daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self.target), timeout=5)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        pair = (near, far)
        for one in pair:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open.update(pair)
        back = threading.Thread(target=self._copy, args=[far, near, True], daemon=True)
        back.start()
        self._copy(near, far, False)
        back.join()
        with self._lock:
            self._open.difference_update(pair)
        for one in pair:
            one.close()

    def _copy(self, source: socket.socket, to: socket.socket, is_answer: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if is_answer and self.losing and random.random() < self.losing:
                    break
                to.sendall(data)
        for one in (source, to):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def cut(self, dice: Dice, share: float) -> None:
        """Cut connections in the midst of whatever they are doing."""
        with self._lock:
            for one in list(self._open):
                if dice.random() < share:
                    with suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)


class Nemesis:
    """The database and the faults."""

    def __init__(self, seed: int, folder: Path, parent: int, only: str | None) -> None:
        self.only = only
        self.dice, self.world = Dice(f"nemesis {seed}"), World(seed)
        self.log = Log(folder / "faults.jsonl")
        self.data_dir = folder / "postgres"
        self.parent = psutil.Process(parent)
        self.way = Way()
        self.url = f"postgresql://{postgres.NAME}@127.0.0.1:{self.way.port}/{postgres.NAME}?sslmode=disable"
        self.start()
        # When each transaction was committed tells in which order things took effect. It takes a restart.
        with self.connect() as conn:
            conn.execute("ALTER SYSTEM SET track_commit_timestamp = on")
        self.stop()
        self.start()

    def start(self) -> None:
        """Start the database; a killed one may still be letting go of its memory."""
        for _ in range(40):
            try:
                self._context = postgres.process(self.data_dir)
                url, self._guard = self._context.__enter__()
            except postgres.PostgresError:
                time.sleep(0.25)
                continue
            self.way.target = int(url.rsplit("/", 1)[0].rsplit(":", 1)[1])
            return
        raise RuntimeError("PostgreSQL does not start")

    def stop(self) -> None:
        self._context.__exit__(None, None, None)

    def connect(self) -> "psycopg.Connection[tuple[Any, ...]]":
        url = f"postgresql://{postgres.NAME}@127.0.0.1:{self.way.target}/{postgres.NAME}?sslmode=disable"
        return psycopg.connect(url, autocommit=True, connect_timeout=5)

    def functions(self) -> list[psutil.Process]:
        """The processes that run functions, of which the service starts a new one where one dies."""
        found: list[psutil.Process] = []
        for child in self.parent.children():
            with suppress(psutil.Error):
                line = child.cmdline()
                if "child" in line and {"gateway", "poll", "schedule"} & set(line):
                    found.append(child)
        return found

    def some(self, number: int) -> list[psutil.Process]:
        """So many of them, as far as there are some at the moment."""
        found = self.functions()
        return self.dice.sample(found, min(number, len(found)))

    def postmaster(self) -> psutil.Process:
        """The first of PostgreSQL's processes, which stands beside the shell that guards it."""
        return next(one for one in psutil.Process(self._guard.pid).children() if one.name() == "postgres")

    # Faults; each returns once it is over

    def kill_database(self) -> None:
        """SIGKILL all of PostgreSQL, and start it again."""
        postmaster = self.postmaster()
        doomed = [postmaster, *postmaster.children()]
        for one in doomed:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(doomed, timeout=10)
        self.stop()
        time.sleep(self.dice.uniform(0, 2))
        self.start()

    def kill_backend(self) -> None:
        """SIGKILL one of PostgreSQL's processes: all of its connections end, and it recovers by itself."""
        with suppress(psutil.NoSuchProcess):
            self.dice.choice(self.postmaster().children()).kill()
        self.await_database()

    def await_database(self) -> None:
        for _ in range(400):
            with suppress(psycopg.OperationalError), self.connect():
                return
            time.sleep(0.05)
        raise RuntimeError("PostgreSQL does not come back")

    def cut_connections(self) -> None:
        for _ in range(self.dice.choice([1, 1, 5])):
            self.way.cut(self.dice, self.dice.choice([0.3, 1.0]))
            time.sleep(self.dice.uniform(0, 0.3))

    def lose_answers(self) -> None:
        """For a while, let connections break just when the database has done what it was asked for."""
        self.way.losing = self.dice.choice([0.05, 0.2])
        time.sleep(self.dice.uniform(0.5, 3))
        self.way.losing = 0.0

    def terminate_connections(self) -> None:
        with self.connect() as conn:
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < 0.5"
            )

    def lock_rows(self) -> None:
        with self.connect() as conn, conn.transaction():
            conn.execute("SELECT FROM enrollments WHERE user_id = %s FOR UPDATE", [self.world.learners[0]])
            time.sleep(self.dice.uniform(0.2, 3))

    def lock_table(self) -> None:
        table = self.dice.choice(
            ["enrollments", "lesson_progress", "quiz_attempts", "outbox", "enrollment_history", "certificates"]
        )
        with self.connect() as conn, conn.transaction():
            # Whoever waits for locks can't be part of a deadlock here, since this takes only one.
            conn.execute(SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(Identifier(table)))
            time.sleep(self.dice.uniform(0.2, 2))

    def kill_functions(self) -> None:
        for one in self.some(self.dice.choice([1, 1, 1, 3])):
            with suppress(psutil.NoSuchProcess):
                one.kill()

    def suspend_functions(self) -> None:
        chosen = self.some(self.dice.choice([1, 1, 2]))
        for one in chosen:
            with suppress(psutil.NoSuchProcess):
                one.suspend()
        time.sleep(self.dice.uniform(0.3, 4))
        for one in chosen:
            with suppress(psutil.NoSuchProcess):
                one.resume()

    def strike(self) -> None:
        faults: dict[Callable[[], None], int] = {
            self.kill_database: 2,
            self.kill_backend: 2,
            self.cut_connections: 3,
            self.lose_answers: 4,
            self.terminate_connections: 3,
            self.lock_rows: 4,
            self.lock_table: 2,
            self.kill_functions: 4,
            self.suspend_functions: 4,
        }
        fault = getattr(self, self.only) if self.only else self.dice.choices(list(faults), list(faults.values()))[0]
        begun = now()
        self.log.write(fault=fault.__name__, at=begun)
        try:
            fault()
        except psycopg.Error as error:
            # The way it is struck may be struck itself, as by PostgreSQL still recovering.
            self.log.write(fault=fault.__name__, at=begun, error=repr(error))
        finally:
            self.log.write(fault=fault.__name__, at=begun, until=now())


def run(seed: int, folder: Path, parent: int, only: str | None, pipe: Connection) -> None:
    """Run the database and strike while told to: "strike", "rest" and "end" come through the pipe and are answered."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgid(0, 0)
    nemesis = Nemesis(seed, folder, parent, only)
    pipe.send(nemesis.url)
    striking = False
    try:
        while True:
            if pipe.poll(nemesis.dice.uniform(0.5, 3) if striking else None):
                order = pipe.recv()
                striking = order == "strike"
                pipe.send(order)
                if order == "end":
                    return
            elif striking:
                nemesis.strike()
    except EOFError:
        return
    finally:
        nemesis.stop()
