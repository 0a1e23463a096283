"""Kill a run with SIGKILL at random moments, resume it, and compare what it ends with to an unbroken run.

    python -m benchmarks.kills.run --kills 20

Prints a table, one line a kill: the moment, the state that it was resumed from, and whether rounds, audits (ids,
rewards, labels) and weights are the same bit for bit. Writes results.jsonl; then `python -m benchmarks.tables`. One
thread; a short run by default.
"""

import argparse
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from benchmarks.shared.results import Results, read_figures
from benchmarks.shared.runs import child_environment

SHORT = ["--data.synthetic_pairs=400", "--evolution.seed_epochs=2", "--evolution.epochs_per_round=1"]


def command(run: Path, extra: list[str]) -> list[str]:
    """A run that starts or resumes, whichever is needed."""
    fit = [sys.executable, "-m", "ser_lightning", "fit", "--config", "rm.yaml", *extra]
    return [*fit, f"--run_dir={run}", "--ckpt_path=auto", "--trainer.enable_progress_bar=false"]


def start(run: Path, extra: list[str]) -> subprocess.Popen:
    """The run as a process of its own."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command(run, extra), env=child_environment(), **quiet)


def finish(process: subprocess.Popen) -> None:
    """Wait for the end, which has to be a good one."""
    _, stderr = process.communicate()
    if process.returncode:
        raise RuntimeError(stderr.decode()[-2000:])


def state_of(run: Path) -> str:
    """What the last checkpoint of a killed run says, and whether another one was being written."""
    last = run / "checkpoints" / "last.ckpt"
    being_written = ", while a checkpoint was written" if last.with_name("last.ckpt.new").exists() else ""
    if not last.exists():
        return f"nothing{being_written}"
    callbacks = torch.load(last, weights_only=False, map_location="cpu")["callbacks"]
    state = next(state for state in callbacks.values() if "phase_index" in state)
    rounds = len(list(run.glob("rounds/*/audit.parquet")))
    return f"epoch {state['epochs_done']}: round {state['round']}, phase {state['phase_index']}; {rounds} audits" + (
        being_written
    )


def differences(run: Path, reference: Path) -> list[str]:
    """Names of the results in which two runs differ."""
    found = []
    if _rounds(run) != _rounds(reference):
        found.append("rounds.csv")
    for folder in sorted(reference.glob("rounds/*")):
        other = run / "rounds" / folder.name
        if not pq.read_table(folder / "audit.parquet").equals(pq.read_table(other / "audit.parquet")):
            found.append(f"audit {folder.name}")
        if not _same(_load(folder / "model.pt"), _load(other / "model.pt")):
            found.append(f"model {folder.name}")
    last = Path("checkpoints") / "last.ckpt"
    if not _same(_load(run / last)["state_dict"], _load(reference / last)["state_dict"]):
        found.append("last.ckpt")
    return found


def _rounds(run: Path) -> list[dict[str, str]]:
    """As text: two figures that are not defined are the same, but NaN equals nothing."""
    return [{k: repr(v) for k, v in row.items() if k != "seconds"} for row in read_figures(run / "rounds.csv")]


def _load(path: Path) -> dict:
    return torch.load(path, weights_only=False, map_location="cpu")


def _same(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def main() -> None:
    """One unbroken run, then the kills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--scratch", type=Path, default=Path("runs/kills"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.jsonl")
    parser.add_argument("--args", nargs=argparse.REMAINDER, default=SHORT, help="arguments of the run")
    args = parser.parse_args()
    shutil.rmtree(args.scratch, ignore_errors=True)
    begin = time.monotonic()
    finish(start(args.scratch / "unbroken", args.args))
    duration = time.monotonic() - begin
    rng, lines = random.Random(args.seed), []
    for number in tqdm(range(args.kills), desc="kills"):
        run = args.scratch / str(number)
        moment = rng.random()
        process = start(run, args.args)
        time.sleep(moment * duration)
        process.kill()
        process.communicate()
        resumed_from = state_of(run)
        finish(start(run, args.args))
        wrong = differences(run, args.scratch / "unbroken")
        lines.append(
            {
                "number": number,
                "moment": round(moment, 3),
                "resumed_from": resumed_from,
                "differs": wrong,
                "args": args.args,
            }
        )
        tqdm.write(f"{moment:6.1%} of the run | resumed from {resumed_from} | {', '.join(wrong) or 'equal'}")
    args.out.unlink(missing_ok=True)
    Results(args.out, "number").add(*lines)
    sys.exit(any(line["differs"] for line in lines))


if __name__ == "__main__":
    main()
