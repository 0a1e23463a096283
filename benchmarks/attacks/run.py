"""Bad data files, damaged runs and models, kills before the n-th file operation, double starts: what becomes of them.

    python -m benchmarks.attacks.run                        # all of it, half an hour on one core
    python -m benchmarks.attacks.run --parts data kills     # some of it again
    python -m benchmarks.tables                             # writes the tables into docs/security.md

Every case follows from its number. What is right is known from how the case was made, or from the sound folder. A case
that ends in a traceback, takes minutes, is read wrongly without a word, or loses a result is a fault. It stands with
its number in results.jsonl, and the exit code is 1. Processes are forked from one that has all imports.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.attacks.checks import CHECKS, Judged
from benchmarks.attacks.scene import drafts, fit_words, make_scene, results_of, run_command
from benchmarks.attacks.tables import RESULTS
from benchmarks.shared.results import Results

NUMBERS = {"data": 2400, "run": 360, "model": 150, "rewards": 90, "kills": 100, "starts": 20}
"""Cases of each part."""
MAX_MEMORY = 12 * 1024**3
BATCH = 25
"""Cases to a process: it has to be new for a crash, not for each case."""


# Processes.


def forked(work: Callable[[], None], said: Path) -> int:
    """Start a process that does this and ends with 0, or with 70 after an error; its output goes into a file."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        out = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, resource.RLIM_INFINITY))
        work()
        code = 0
    finally:
        os._exit(code)


def ended_with(child: int) -> int:
    """The exit code of a process, minus the number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Cases of files: each in its own folder, many to a process.


def check_files(part: str, numbers: Sequence[int], scene: Path, scratch: Path) -> Iterator[tuple[int, Judged]]:
    """Judge the cases of a part; a process that dies is a fault of its case."""
    waiting = list(numbers)
    while waiting:
        batch, log = waiting[:BATCH], scratch / f"{part}.jsonl"
        log.unlink(missing_ok=True)

        def work(batch: list[int] = batch, log: Path = log) -> None:
            os.chdir(scratch)
            with log.open("a") as out:
                for number in batch:
                    judged = CHECKS[part](number, scene, scratch / part)
                    print(json.dumps([number, vars(judged)]), file=out, flush=True)

        code = ended_with(forked(work, scratch / f"{part}.txt"))
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
        for number, judged in lines:
            yield number, Judged(judged["kind"], judged["outcome"], tuple(judged["faults"]))
        done = len(lines)
        if code:
            yield batch[done], Judged("unknown", "none", (f"the process ended with {code}",))
            done += 1
        waiting = waiting[done:]


# Kills.

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CALLS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


def count_operations(below: Path, act: Callable[[int], None]) -> None:
    """Call `act` with 1, 2, 3 and so on before every operation that changes files below a folder."""
    count, root = 0, str(below)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        is_write = event in CALLS or (event == "open" and isinstance(args[2], int) and args[2] & WRITES)
        if is_write and any(
            isinstance(one, (str, bytes, os.PathLike)) and os.fsdecode(one).startswith(root) for one in args[:2]
        ):
            count += 1
            act(count)

    sys.addaudithook(hook)


def fit(scene: Path, run: Path, *more: str) -> int:
    """One fit with a cache of its own beside its run: what it writes lies below one folder."""
    return run_fit(fit_words(scene, run, f"--data.cache_dir={run.parent / 'cache'}", *more))


def run_fit(words: list[str]) -> int:
    """Its exit code; 70 for an end that is none."""
    ended = run_command(*words)
    print(ended.said or ended.fault)
    return 70 if ended.fault else ended.code


def start(work: Callable[[], int], said: Path) -> int:
    """Fork a process that ends with the code that `work` returns."""

    def run() -> None:
        code = work()
        sys.stdout.flush()
        os._exit(code)

    return forked(run, said)


def number_of_operations(scene: Path, scratch: Path) -> int:
    """File operations of an unbroken run, which is left in `unbroken/`."""
    folder = scratch / "unbroken"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = scratch / "operations"

    def work() -> int:
        count_operations(folder, lambda number: log.write_text(str(number)) and None)
        return fit(scene, folder / "run", "--ckpt_path=auto")

    if code := ended_with(start(work, scratch / "unbroken.txt")):
        raise RuntimeError(f"the unbroken run ended with {code}: {(scratch / 'unbroken.txt').read_text()[-2000:]}")
    return int(log.read_text())


def check_kill(number: int, of: int, scene: Path, scratch: Path) -> Judged:
    """Kill a run before its n-th file operation; then it is started anew or goes on, and ends as the unbroken one."""
    folder = scratch / f"kill-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run, said = folder / "run", scratch / f"kill-{number}.txt"
    said.unlink(missing_ok=True)

    def work() -> int:
        count_operations(folder, lambda now: os.kill(os.getpid(), signal.SIGKILL) if now == of else None)
        return fit(scene, run, "--ckpt_path=auto")

    kind = f"before operation {of}"
    if ended_with(start(work, said)) != -signal.SIGKILL:
        return Judged(kind, "none", ("it was not killed",))
    faults, has_saved = [], any(run.glob("checkpoints/*.ckpt")) or (run / "rounds").exists()
    if number % 2 and not has_saved:  # a new start takes it
        code = ended_with(start(lambda: fit(scene, run), said))
        outcome = "started anew"
    else:
        code = ended_with(start(lambda: fit(scene, run, "--ckpt_path=auto"), said))
        outcome = "went on"
    if code:
        return Judged(kind, outcome, (f"{outcome}: code {code}: {said.read_text()[-1500:]}",))
    if results_of(run) != results_of(scratch / "unbroken" / "run"):
        faults.append("lost: ends with other results than the unbroken run")
    if left := [str(path.relative_to(folder)) for path in drafts(folder)]:
        faults.append(f"left behind: {left[:3]}")
    shutil.rmtree(folder)
    return Judged(kind, outcome, tuple(faults))


def check_starts(number: int, scene: Path, scratch: Path) -> Judged:
    """Two starts in one folder, some moments apart: one trains, the other one says so in a line."""
    rng = random.Random(f"starts {number}")
    folder = scratch / f"start-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run, said = folder / "run", [scratch / f"start-{number}-{i}.txt" for i in range(2)]
    more = ["--ckpt_path=auto"] if number % 3 else []
    children = []
    for file in said:
        file.unlink(missing_ok=True)
        children.append(start(lambda: fit(scene, run, *more), file))
        time.sleep(rng.choice((0, 0, 0.05, 0.3, 1.0)))
    codes = [ended_with(child) for child in children]
    texts = [file.read_text() for file in said]
    good = [i for i, code in enumerate(codes) if code == 0]
    faults = []
    if not good or any(code not in (0, 2) for code in codes):
        faults.append(f"codes {codes}: {texts}")
    for code, text in zip(codes, texts, strict=True):
        if code == 2 and not ("trains" in text or "holds a run" in text):
            faults.append(f"the second one says: {text[-300:]}")
    if good and results_of(run) != results_of(scratch / "unbroken" / "run"):
        faults.append("lost: ends with other results than one run alone")
    shutil.rmtree(folder)
    outcome = "both in turn" if len(good) == 2 else "one trained, the other was refused"
    return Judged("with --ckpt_path auto" if more else "new starts", outcome, tuple(faults))


# All of it.


def cases_of(part: str, number: int, scene: Path, scratch: Path) -> Iterator[tuple[int, Judged]]:
    """The cases of a part."""
    if part in CHECKS:
        yield from check_files(part, range(number), scene, scratch)
        return
    operations = number_of_operations(scene, scratch)
    rng = random.Random(0)
    first = list(range(1, min(operations, 1 + number // 3)))  # every one at the beginning, then some of the others
    others = sorted(
        rng.sample(range(len(first) + 1, operations + 1), min(number - len(first), operations - len(first)))
    )
    for i, of in enumerate([*first, *others] if part == "kills" else range(number)):
        yield i, check_kill(i, of, scene, scratch) if part == "kills" else check_starts(i, scene, scratch)


def summary(part: str, cases: Sequence[tuple[int, Judged]], seconds: float) -> list[dict[str, Any]]:
    """A line for each kind of case: how many there were, how they ended, and the faults with their numbers."""
    by_kind: dict[str, list[tuple[int, Judged]]] = defaultdict(list)
    for number, judged in cases:
        by_kind["killed" if part == "kills" else judged.kind].append((number, judged))
    return [
        {
            "part": part,
            "kind": kind,
            "cases": len(found),
            "outcomes": dict(sorted(Counter(judged.outcome for _, judged in found).items())),
            "faults": [[number, judged.kind, fault[-600:]] for number, judged in found for fault in judged.faults],
            "seconds": round(seconds * len(found) / len(cases), 2),
        }
        for kind, found in sorted(by_kind.items())
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(NUMBERS), default=list(NUMBERS))
    parser.add_argument("--number", type=int, help="cases of each part, to try it out")
    parser.add_argument("--scratch", type=Path, default=Path("runs/attacks"))
    parser.add_argument("--out", type=Path, default=RESULTS.file)
    args = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)
    scratch = args.scratch.absolute()
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    made = start(lambda: make_scene(scratch / "scene") and 0, scratch / "scene.txt")
    if code := ended_with(made):
        sys.exit(f"the scene could not be made ({code}): {(scratch / 'scene.txt').read_text()[-3000:]}")
    import ser_lightning.cli.lightning  # noqa: F401  imported once, for all processes that are forked

    results, is_bad = Results(args.out, "part", "kind"), False
    for part in args.parts:
        begin, number = time.monotonic(), args.number or NUMBERS[part]
        cases = list(tqdm(cases_of(part, number, scratch / "scene", scratch), total=number, desc=part))
        lines = summary(part, cases, time.monotonic() - begin)
        is_bad |= any(line["faults"] for line in lines)
        others = [line for line in results.read() if line["part"] != part]
        args.out.unlink(missing_ok=True)
        results.add(*others, *lines)
        faults = sum(len(line["faults"]) for line in lines)
        tqdm.write(f"{part}: {len(cases)} cases, {faults} faults, {time.monotonic() - begin:.0f} s")
    sys.exit(is_bad)


if __name__ == "__main__":
    main()
