"""The tests marked `gpu`, and the figures that they record: how far packed rows, 4 bits and a resumed run are off."""

from typing import Any

import pytest

from benchmarks.gpu.job import ROOT, Job, without_paths


class Collector:
    """A pytest plugin that keeps every outcome the moment it is there.

    Args:
        job: where they go.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Once for each test that ran; a failure while it is set up counts as one."""
        if report.when != "call" and report.outcome == "passed":
            return
        found: dict[str, Any] = {"outcome": report.outcome, "seconds": round(report.duration, 2)}
        found["figures"] = dict(report.user_properties)
        if report.outcome == "failed":
            found["error"] = without_paths(str(report.longrepr))[-1500:]
        self.tests[report.nodeid.removeprefix("tests/gpu/")] = found
        outcomes = [test["outcome"] for test in self.tests.values()]
        counts = {name: outcomes.count(name) for name in ("passed", "failed", "skipped")}
        text = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
        self.job.record(tests=self.tests, counts=counts, headline=text)


def run(job: Job) -> None:
    """All of them on a GPU; in tiny a few, which the suite runs in full anyway."""
    collector = Collector(job)
    chosen = ["-m", "not gpu", "-k", "sampling"] if job.is_tiny else ["-m", "gpu"]
    # Most of the time goes into compiling, which keeps one core busy; no test is about time or memory.
    number = "0" if job.is_tiny else "4"
    flags = [str(ROOT / "tests" / "gpu"), "--rootdir", str(ROOT), "-n", number, "-p", "no:cacheprovider", *chosen]
    pytest.main(flags, plugins=[collector])
    counts = job.figures.get("counts", {})
    if counts.get("failed") or not counts.get("passed"):
        raise RuntimeError(f"tests: {job.figures.get('headline', 'none ran')}")
