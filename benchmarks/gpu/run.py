"""Everything that needs a GPU, in the order of worth: `python benchmarks/gpu/run.py --minutes 9`.

Each part runs in its own process with a time limit, and writes a JSON file to `benchmarks/gpu/results/` as soon as it
is done. The same command again runs what is missing, then what failed; `--only NAME ...` runs the named parts. `--tiny`
runs everything on a CPU with small random models, to test the code.
"""

import argparse
import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parents[1])  # the root of the checkout, for `benchmarks` and the package

from benchmarks.gpu.job import Job, commit, without_paths, write_json  # noqa: E402

ERROR_LINES = 15
TINY_SECONDS = 300
IMPORT_SECONDS = 60
"""Longest wait for a worker's imports."""


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        name: of the part and of its JSON file.
        work: `module:function` in this folder, and what the function gets besides the job.
        seconds: time box, about one and a half of what is expected.
        least: seconds without which it is not started.
        finds: what it is for, in a few words.
    """

    name: str
    work: str
    seconds: int
    least: int
    finds: str
    settings: tuple[str, ...] = ()


PARTS = (
    Part("smoke", "smoke:run", 75, 40, "do packed rows under FlexAttention and NF4 run at all? facts of the card"),
    Part("correctness", "correctness:run", 200, 60, "the tests marked gpu"),
    Part("memory_12gb", "memory:train", 150, 45, "8B in 4 bits within 12 GB, beside plan", ("qlora_12gb",)),
    Part("speed_0.5b", "speed:run", 220, 60, "pairs a second against TRL and a pipeline", ("0.5b",)),
    Part("speed_8b", "speed:run", 200, 80, "the same", ("8b",)),
    Part("memory_ppo_24gb", "memory:ppo", 180, 60, "PPO of 8B: four models on one 4-bit base within 24 GB"),
    Part("compile", "compilation:run", 60, 30, "compilations over 50 batches of random lengths"),
    Part("kernels", "kernels:run", 60, 30, "where the time of a batch goes, kernel by kernel"),
    Part("rl", "rl:run", 150, 60, "seconds a step, tokens a second, against TRL and continuous batching"),
    Part("distributed", "distributed:run", 120, 40, "DDP and FSDP2 start with NCCL"),
    Part("memory_24gb", "memory:train", 150, 45, "8B in 4 bits within 24 GB, beside plan", ("qlora_24gb",)),
    Part("memory_80gb", "memory:train", 150, 45, "8B in bfloat16 within 80 GB, beside plan", ("lora_80gb",)),
    Part("speed_1.5b", "speed:run", 200, 60, "pairs a second against TRL and a pipeline", ("1.5b",)),
    Part("speed_135m", "speed:run", 200, 60, "the same", ("135m",)),
    Part("evidence", "evidence:run", 300, 60, "evolution of trained bodies on real pairs; needs --data and --models"),
)
"""In the order of worth."""


class Worker:
    """A process that imports what it needs, waits for the word, and does one part.

    Importing takes as long as some parts do, so the next part's worker starts while the one before is still at work.
    """

    def __init__(self, part: Part, args: argparse.Namespace) -> None:
        self.part = part
        self.figures = args.scratch / f"{part.name}.json"
        self.ready = args.scratch / f"{part.name}.ready"
        for file in (self.figures, self.ready):
            file.unlink(missing_ok=True)
        self.log = args.scratch / f"{part.name}.log"
        words = [sys.executable, str(HERE / "run.py"), "--work", part.name, *given_flags(args)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "disabled"}
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(HERE.parent.parent), os.environ.get("PYTHONPATH")])
        )
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(args.scratch / "inductor")  # what one part compiled, others reuse
        if args.tiny:
            environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            # A session of its own, so that its children die with it.
            self.process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, env=environment, start_new_session=True
            )

    def run(self, seconds: float) -> dict[str, Any]:
        """Say the word when everything is imported, wait, and give back status, seconds, and what is in the files."""
        self.wait_until_ready()
        start = time.monotonic()
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.close()
        except BrokenPipeError:  # it died before its time; the log says why
            pass
        try:
            code = self.process.wait(seconds)
            status = {0: "ok", SKIPPED: "skipped"}.get(code, "failed")
        except subprocess.TimeoutExpired:
            status = "timed out"
        self.kill()
        found = {"status": status, "seconds": round(time.monotonic() - start, 1)}
        if status != "ok":
            lines = self.log.read_text(errors="replace").splitlines()[-ERROR_LINES:]
            found["error"] = [without_paths(line) for line in lines]
        if self.figures.is_file():
            found |= json.loads(self.figures.read_text())
        return found

    def wait_until_ready(self) -> None:
        """Importing from a cold disk takes up to half a minute, which is no part's own time."""
        end = time.monotonic() + IMPORT_SECONDS
        while not self.ready.exists() and self.process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)

    def kill(self) -> None:
        """End the process and its children, whatever they do."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()


SKIPPED = 75
"""Exit code of a part that lacks what it needs, such as pairs or weights."""


def given_flags(args: argparse.Namespace) -> list[str]:
    """What a worker has to know of the command line."""
    flags = ["--tiny"] if args.tiny else []
    for name in ("out", "scratch", "data", "models"):
        if getattr(args, name):
            flags += [f"--{name}", str(getattr(args, name))]
    return flags


def work(part: Part, args: argparse.Namespace) -> None:
    """A worker's whole life."""
    function = importlib.import_module(f"benchmarks.gpu.{part.work.partition(':')[0]}")
    for name in ("lightning.pytorch", "transformers", "peft", "bitsandbytes", "ser_lightning.cli.lightning"):
        importlib.import_module(name)
    (args.scratch / f"{part.name}.ready").touch()
    seconds = float(sys.stdin.readline() or sys.exit("nobody is waiting"))
    figures = args.scratch / f"{part.name}.json"
    job = Job(figures, args.tiny, seconds, args.out, args.scratch, args.data, args.models)
    reason = getattr(function, part.work.partition(":")[2])(job, *part.settings)
    if reason:
        print(reason, flush=True)
        sys.exit(SKIPPED)


def chosen_parts(args: argparse.Namespace) -> list[Part]:
    """What is asked for, else what is missing and then what was not ok."""
    if args.only:
        return [part for part in PARTS if part.name in args.only]
    statuses = {part.name: status_of(args.out / f"{part.name}.json") for part in PARTS}
    missing = [part for part in PARTS if statuses[part.name] is None]
    return missing + [part for part in PARTS if statuses[part.name] not in (None, "ok")]


def status_of(file: Path) -> str | None:
    """How a part ended, None if it never ran."""
    return json.loads(file.read_text())["status"] if file.is_file() else None


def keep(file: Path, result: dict[str, Any]) -> None:
    """Write a part's result, unless it has no figures where an earlier one, of more luck, has some."""
    if file.is_file() and not result.get("figures") and json.loads(file.read_text()).get("figures"):
        return
    write_json(file, result)


def run_parts(parts: list[Part], args: argparse.Namespace) -> list[tuple[str, str, float, str]]:
    """Do the parts one after the other while there is time; a line of the table for each."""
    end = time.monotonic() + 60 * args.minutes
    lines: list[tuple[str, str, float, str]] = []
    following: Worker | None = None
    for number, part in enumerate(parts):
        left = end - time.monotonic()
        if left < part.least and not args.tiny:
            lines.append((part.name, "no time", 0.0, f"needs {part.least} s, {max(0.0, left):.0f} s are left"))
            continue
        worker = following if following and following.part is part else Worker(part, args)
        later = next((p for p in parts[number + 1 :] if p.least + part.least < left), None)
        following = Worker(later, args) if later and not args.tiny else None
        print(f"{part.name}: {part.finds}", flush=True)
        seconds = TINY_SECONDS if args.tiny else min(part.seconds, left)
        command = shlex.join(
            ["python", "benchmarks/gpu/run.py", "--only", part.name, *(["--tiny"] if args.tiny else [])]
        )
        result = {
            "part": part.name,
            "command": command,
            "commit": args.commit,
            "tiny": args.tiny,
            **worker.run(seconds),
        }
        keep(args.out / f"{part.name}.json", result)
        note = headline(result.get("figures", {})) if result["status"] == "ok" else last_words(result)
        lines.append((part.name, result["status"], result["seconds"], note))
        print(f"  {result['status']}, {result['seconds']:.0f} s: {note}", flush=True)
        if following and following.part.least > end - time.monotonic():
            following.kill()
            following = None
    if following:
        following.kill()
    return lines


def headline(figures: dict[str, Any]) -> str:
    """What a part says of itself in one line."""
    return str(figures.get("headline", ""))


def last_words(result: dict[str, Any]) -> str:
    """Last line of an error that says something."""
    lines = [line.strip() for line in result.get("error", []) if line.strip()]
    return lines[-1] if lines else headline(result.get("figures", {}))


def table(lines: list[tuple[str, str, float, str]]) -> str:
    """All parts of this call, aligned."""
    width = max((len(name) for name, *_ in lines), default=0)
    return "\n".join(f"{name:<{width}}  {status:<9}  {seconds:5.0f} s  {note}" for name, status, seconds, note in lines)


def main(argv: list[str] | None = None) -> int:
    """Command line; 0 where nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9, help="all parts together")
    parser.add_argument(
        "--only", nargs="+", choices=[part.name for part in PARTS], help="these, also where they are done"
    )
    parser.add_argument("--tiny", action="store_true", help="small random models on a CPU, to try the code")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the JSON files")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "ser_lightning_gpu")
    parser.add_argument("--data", type=Path, help="folder of .jsonl files of preference pairs, for `evidence`")
    parser.add_argument("--models", type=Path, help="folder of folders of pretrained models, for `evidence`")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for name in ("out", "scratch", "data", "models"):
        if getattr(args, name):
            setattr(args, name, getattr(args, name).resolve())
    if args.work:
        work(next(part for part in PARTS if part.name == args.work), args)
        return 0
    args.scratch.mkdir(parents=True, exist_ok=True)
    args.commit = commit()
    lines = run_parts(chosen_parts(args), args)
    print("\n" + table(lines))
    return int(any(status in ("failed", "timed out") for _, status, *_ in lines))


if __name__ == "__main__":
    sys.exit(main())
