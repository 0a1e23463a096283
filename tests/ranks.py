"""Two processes that are ranks of one another and stay up: each command runs on both, and no import is paid twice."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _start() -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**shared, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]  # fmt: skip


@pytest.fixture(scope="session")
def _two_ranks() -> Iterator[list[subprocess.Popen]]:
    ranks: list[subprocess.Popen] = []
    yield ranks
    for rank in ranks:
        rank.stdin.close()
        rank.wait()


@pytest.fixture
def on_two_ranks(_two_ranks, tmp_path) -> Callable[..., str]:
    """Runs a command line on two ranks in this test's folder and environment; gives what rank 0 said."""

    def run(*words: str) -> str:
        if not _two_ranks:
            _two_ranks.extend(_start())
        job = {"folder": str(tmp_path), "environment": dict(os.environ), "words": words}
        for rank in _two_ranks:
            print(json.dumps(job), file=rank.stdin, flush=True)
        replies = [rank.stdout.readline() for rank in _two_ranks]  # empty where a rank has ended
        said = [(tmp_path / f"rank-{number}.txt").read_text() for number in range(2)]
        if replies != ["0\n", "0\n"]:
            while _two_ranks:  # the next test gets new ones
                _two_ranks.pop().kill()
            pytest.fail("\n".join(text[-3000:] for text in said))
        return said[0]

    return run


def _exit_code(words: list[str]) -> int:
    """Of one command line; an exception is told where standard error goes."""
    from ser_lightning.__main__ import main

    try:
        with contextlib.redirect_stdout(sys.stderr):
            return main(words)
    except Exception:
        traceback.print_exc()
        return 1


def _serve() -> None:
    """Run the command lines that come in, one a line, and answer each with its exit code."""
    number, answers = os.environ["RANK"], os.fdopen(os.dup(1), "w")
    own = {name: os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK")}
    for line in sys.stdin:
        job = json.loads(line)
        os.environ.clear()
        os.environ.update(job["environment"] | own)
        os.chdir(job["folder"])
        sys.path[0] = job["folder"]
        with open(f"rank-{number}.txt", "w") as said, contextlib.redirect_stderr(said):
            code = _exit_code(job["words"])
        print(code, file=answers, flush=True)
        if code:
            sys.exit(code)  # or the other rank would wait for this one


if __name__ == "__main__":
    _serve()
