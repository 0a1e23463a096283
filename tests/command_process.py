"""Command lines in processes of their own, forked from one that has imported everything: they start at once."""

import gc
import multiprocessing
import os
import runpy
import sys
import tempfile
from multiprocessing.connection import Connection

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ser_lightning.cli.lightning", "ser_lightning.cli.serve", "ser_lightning.cli.score"])


class CommandProcess:
    """`python -m ser_lightning WORDS` in this folder and environment, with what tests use of `subprocess.Popen`.

    Where the start itself is what is tested, start an interpreter.

    Args:
        words: the command line.
        script: a Python file to run with it instead of the package.
    """

    def __init__(self, *words: str, script: str | None = None) -> None:
        reading, writing = os.pipe()
        self.stdout, self.stderr = os.fdopen(reading), tempfile.TemporaryFile("w+")  # noqa: SIM115
        out, errors = Connection(writing, readable=False), Connection(os.dup(self.stderr.fileno()))
        job = (words, script, os.getcwd(), dict(os.environ), out, errors)
        self._process = CONTEXT.Process(target=_run, args=job, daemon=True)
        self._process.start()
        out.close(), errors.close()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Minus the number of the signal that ended it; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Which it gets as from a terminal."""
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """At once, if it has not ended."""
        self._process.kill()

    def communicate(self) -> tuple[str, str]:
        """Wait for its end and its children's; the rest of standard output, and all of standard error."""
        out = self.stdout.read()
        self._process.join()
        self.stderr.seek(0)
        return out, self.stderr.read()


def _run(
    words: tuple[str, ...],
    script: str | None,
    folder: str,
    environment: dict[str, str],
    out: Connection,
    errors: Connection,
) -> None:
    from ser_lightning.__main__ import main

    gc.freeze()  # as in fixtures.py
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(out.fileno(), 1)
    os.dup2(errors.fileno(), 2)
    out.close(), errors.close()
    sys.argv = [script or "ser_lightning", *words]
    if script:
        runpy.run_path(script, run_name="__main__")
    sys.exit(main([*words]))
