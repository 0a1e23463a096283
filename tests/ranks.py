"""Two processes that are ranks of one another and stay up: each command runs on both, and no import is paid twice."""

import contextlib
import gc
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess

import pytest

from tests.command_process import CONTEXT

Rank = tuple[ForkServerProcess, Connection]
"""A process, and where it takes command lines and gives exit codes."""


def _start() -> Iterator[Rank]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for number in range(2):
        ours, theirs = CONTEXT.Pipe()
        rank = CONTEXT.Process(target=_serve, args=(theirs, number, port), daemon=True)
        rank.start()
        theirs.close()
        yield rank, ours


@pytest.fixture(scope="session")
def _two_ranks() -> Iterator[list[Rank]]:
    ranks: list[Rank] = []
    yield ranks
    for rank, jobs in ranks:
        jobs.close()
        rank.join()


def _reply(jobs: Connection) -> int | None:
    try:
        return jobs.recv()
    except EOFError:  # it has ended
        return None


@pytest.fixture
def on_two_ranks(_two_ranks, tmp_path) -> Callable[..., str]:
    """Runs a command line on two ranks in this test's folder and environment; gives what rank 0 said."""

    def run(*words: str) -> str:
        if not _two_ranks:
            _two_ranks.extend(_start())
        for _, jobs in _two_ranks:
            jobs.send((str(tmp_path), dict(os.environ), words))
        codes = [_reply(jobs) for _, jobs in _two_ranks]
        said = [(tmp_path / f"rank-{number}.txt").read_text() for number in range(2)]
        if codes != [0, 0]:
            while _two_ranks:  # the next test gets new ones
                _two_ranks.pop()[0].kill()
            pytest.fail("\n".join(text[-3000:] for text in said))
        return said[0]

    return run


def _exit_code(words: tuple[str, ...]) -> int:
    """Of one command line; an exception is told where standard error goes."""
    from ser_lightning.__main__ import main

    try:
        with contextlib.redirect_stdout(sys.stderr):
            return main([*words])
    except Exception:
        traceback.print_exc()
        return 1


def _serve(jobs: Connection, number: int, port: int) -> None:
    """Run the command lines that come in, and answer each with its exit code."""
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    own |= {"RANK": str(number), "LOCAL_RANK": str(number)}
    sys.path.insert(0, "")
    gc.freeze()  # as in fixtures.py
    while True:
        try:
            folder, environment, words = jobs.recv()
        except EOFError:
            return
        os.environ.clear()
        os.environ.update(environment | own)
        os.chdir(folder)
        sys.path[0] = folder
        with open(f"rank-{number}.txt", "w") as said, contextlib.redirect_stderr(said):
            code = _exit_code(words)
        jobs.send(code)
        if code:
            sys.exit(code)  # or the other rank would wait for this one
