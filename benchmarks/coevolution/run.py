"""Policy and reward model teach one another: a policy trained against the reward model answers, its answers come as a
pool of unlabelled pairs, the reward model evolves on them, and the next policy is trained against that.

    python -m benchmarks.coevolution.run --folder runs/coevolve --turns 2

Calls the command line for every step, all of them in one folder; the same command again goes on where it broke off.
Ends with a table, which is also written to `coevolve.json` in the folder: how often the reward model before a turn and
the one after it order two answers of the turn's policy to a held-out prompt as the gold score does.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats

from benchmarks.coevolution.tables import RESULTS
from benchmarks.shared.results import Results, delivered, read_figures, versions
from ser_lightning.errors import UserError
from ser_lightning.records import Turn
from ser_lightning.rl.reward_sources import load_reward
from ser_lightning.synthetic.world import gold_scores

LAST = Path("checkpoints") / "last.ckpt"
POOL = "pool.jsonl"
STEPS = {
    "rm": [],
    "sft": [],
    "ppo": [],
    "pool": ["--trainer.limit_predict_batches=10"],  # of 64 prompts: some 600 pairs, as the seed has 240
    "more": [],
    "heldout": ["--data.predict_split=val", "--data.num_val_prompts=1000", "--model.responses_per_prompt=4"],
}
"""Kinds of steps and their own flags: `more` continues a reward model, `heldout` answers the held-out prompts."""
NUM_RESAMPLES = 10_000


@dataclass(frozen=True)
class Study:
    """Where the steps of a co-evolution write and what they run with.

    Args:
        folder: holds the run folders of all steps, by their names.
        seed: random seed and split of every step.
        flags: more flags for the command line, by kind of step.
    """

    folder: Path
    seed: int = 0
    flags: dict[str, list[str]] = field(default_factory=dict)

    def run(self, name: str) -> Path:
        """The run folder of a step."""
        return self.folder / name

    def start(self, command: str, kind: str, name: str, *words: str) -> None:
        """Start a step from its config, resume it, or find it done."""
        config = "generate" if command == "predict" else kind
        call(
            *(command, "--config", f"{config}.yaml", "--run_dir", str(self.run(name)), "--ckpt_path", "auto"),
            *(f"--seed_everything={self.seed}", f"--data.split_seed={self.seed}"),
            *(*STEPS[kind], *words, *self.flags.get(kind, [])),
        )

    def fit(self, kind: str, name: str, *words: str) -> Path:
        """The run folder of a training that has come to its end."""
        self.start("fit", kind, name, *words)
        return self.run(name)

    def generate(self, kind: str, name: str, policy: Path) -> Path:
        """The file of pairs that a policy's answers make."""
        path = self.run(name) / POOL
        if not path.is_file():
            self.start("predict", kind, name, "--model.backbone.path", str(policy))
        return path

    def go_on(self, name: str, old: Path, pool: Path) -> Path:
        """The run folder of a reward model that has gone on from another with the pairs of one more file."""
        run = self.run(name)
        if (run / LAST).is_file():  # no branch any more, but a run of its own
            call("fit", "--run_dir", str(run), "--ckpt_path", "auto")
            return run
        more = json.dumps([*files_that_arrived(old), str(pool)])
        words = ("--run_dir", str(run), "--data.new_data_path", more)
        call("fit", "--ckpt_path", str(old / LAST), *words, *self.flags.get("more", []))
        return run


def call(*words: str) -> None:
    """Run one command line, which shows its own progress.

    Raises:
        UserError: if it fails; it has said why.
    """
    print(f"\n$ python -m ser_lightning {' '.join(words)}", flush=True)
    code = subprocess.run([sys.executable, "-m", "ser_lightning", *words], check=False).returncode
    if code:
        raise UserError(f"step: got exit code {code}; mend what it names, then give the same command again")


def data_config(run: Path) -> dict[str, Any]:
    """Arguments of the DataModule that a run was started with."""
    config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return dict(config["data"]["init_args"])


def files_that_arrived(run: Path) -> list[str]:
    """What the run was given as `data.new_data_path`, in the order of arrival."""
    more = data_config(run).get("new_data_path") or []
    return [more] if isinstance(more, str) else [str(path) for path in more]


def check_reused(run: Path, seed: int) -> None:
    """Refuse a first reward model whose splits are not those of the other steps: it may know the held-out prompts."""
    if not (run / LAST).is_file():
        raise UserError(f"--rm: got {run}, which has no {LAST}; give the run folder of a finished fit of rm.yaml")
    data = data_config(run)
    if (data["path"], data["split_seed"]) != ("synthetic", seed):
        raise UserError(
            f"--rm: got {run} with data.path {data['path']} and data.split_seed {data['split_seed']}; need synthetic "
            f"and {seed}, as in the other steps; give the --seed that it was trained with, or another run"
        )


# Measuring


@dataclass(frozen=True)
class PromptCount:
    """How many pairs of answers to one prompt have different gold scores, and how many of them a model gets right."""

    num_pairs: int
    right_before: float
    right_after: float


def read_answers(path: Path) -> list[tuple[list[Turn], list[str]]]:
    """Prompts of a file of pairs, each with the distinct responses that its pairs are made of."""
    found: dict[str, tuple[list[Turn], dict[str, None]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        _, responses = found.setdefault(json.dumps(row["prompt"]), (row["prompt"], {}))
        responses |= dict.fromkeys((row["response_a"], row["response_b"]))
    return [(prompt, list(responses)) for prompt, responses in found.values()]


def count_right(rewards: Sequence[float], gold: Sequence[float]) -> tuple[float, int]:
    """Pairs that rewards order as the gold scores do, a tie of the rewards counting half, and pairs there are.

    Args:
        rewards: K, of the responses to one prompt.
        gold: K; pairs of equal gold scores have no order and do not count.
    """
    right, num_pairs = 0.0, 0
    for i, j in combinations(range(len(gold)), 2):
        if gold[i] != gold[j]:
            margin = rewards[i] - rewards[j]
            right += 0.5 if margin == 0 else float((margin > 0) == (gold[i] > gold[j]))
            num_pairs += 1
    return right, num_pairs


def count_prompts(answers: list[tuple[list[Turn], list[str]]], before: Path, after: Path) -> list[PromptCount]:
    """What two reward models make of the answers to each prompt."""
    prompts = [prompt for prompt, responses in answers for _ in responses]
    texts = [text for _, responses in answers for text in responses]
    columns = [gold_scores(prompts, texts)]
    columns += [load_reward(str(run), allow_uncalibrated=True)(prompts, texts).tolist() for run in (before, after)]
    counts, start = [], 0
    for _, responses in answers:
        gold, *rewards = (column[start : start + len(responses)] for column in columns)
        (right_before, num_pairs), (right_after, _) = (count_right(found, gold) for found in rewards)
        counts.append(PromptCount(num_pairs, right_before, right_after))
        start += len(responses)
    return counts


def figures(counts: list[PromptCount], seed: int = 0) -> dict[str, dict[str, float]]:
    """Share of the pairs that are right before and after, and its change, with 95 % intervals.

    The intervals are percentiles of a bootstrap over prompts (Efron and Tibshirani, 1993, section 13.3), since pairs
    of one prompt are no independent cases; both models are judged on the same resamples, so the change is paired.

    Args:
        counts: N prompts.
        seed: of the resamples.
    """
    table = np.array([(c.num_pairs, c.right_before, c.right_after) for c in counts if c.num_pairs], dtype=float)
    if len(table) < 2:
        raise UserError(
            f"held-out answers: got {len(table)} prompts with answers of different gold scores; need 2: "
            "ask for more prompts or responses"
        )

    def shares(num_pairs: np.ndarray, before: np.ndarray, after: np.ndarray, axis: int = -1) -> np.ndarray:
        pairs, before, after = num_pairs.sum(axis), before.sum(axis), after.sum(axis)
        return np.stack([before / pairs, after / pairs, (after - before) / pairs])

    drawn = stats.bootstrap(
        tuple(table.T), shares, paired=True, vectorized=True, n_resamples=NUM_RESAMPLES, batch=1000,
        method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    interval, estimates = drawn.confidence_interval, shares(*table.T)
    return {
        name: {"estimate": float(estimates[i]), "low": float(interval.low[i]), "high": float(interval.high[i])}
        for i, name in enumerate(("before", "after", "change"))
    }


def gold_of(step: dict[str, float]) -> dict[str, float]:
    """The policy's mean gold score on held-out prompts at one row of `steps.csv`."""
    return {"estimate": step["judge_score"], "low": step["judge_score_low"], "high": step["judge_score_high"]}


def measure_turn(policy: Path, answers: Path, before: Path, after: Path) -> dict[str, Any]:
    """What one turn was worth.

    Args:
        policy: run folder of the policy.
        answers: file of pairs of its answers to held-out prompts.
        before: run folder of the reward model that it was trained against.
        after: run folder of the one that has evolved on the policy's answers.
    """
    counts = count_prompts(read_answers(answers), before, after)
    step = read_figures(policy / "steps.csv")[-1]
    rounds = {"before": read_figures(before / "rounds.csv"), "after": read_figures(after / "rounds.csv")}
    handed_over = {when: delivered({"rounds": rows}) for when, rows in rounds.items()}
    return {
        "num_prompts": sum(count.num_pairs > 0 for count in counts),
        "num_pairs": sum(count.num_pairs for count in counts),
        "accuracy": figures(counts),
        "policy_gold": gold_of(step),
        "policy_kl": step["kl"],
        "test_accuracy": {when: row["test_accuracy"] for when, row in handed_over.items()},
        "is_old_round": handed_over["after"]["round"] <= rounds["before"][-1]["round"],
    }


def take_turns(study: Study, num_turns: int, first_rm: Path | None = None) -> dict[str, Any]:
    """All steps of all turns, and what they were worth.

    Args:
        study: where and with what.
        num_turns: turns, each a policy, its answers and a reward model.
        first_rm: a finished run of rm.yaml to begin with; trained first where there is none.
    """
    if first_rm is not None:
        check_reused(first_rm, study.seed)
    reward_model = first_rm or study.fit("rm", "rm-0")
    policy = study.fit("sft", "sft")
    turns = []
    for turn in range(1, num_turns + 1):
        sources = ("--model.backbone.path", str(policy), "--model.reward_model", str(reward_model))
        policy = study.fit("ppo", f"ppo-{turn}", *sources)
        pool = study.generate("pool", f"pool-{turn}", policy)
        before, reward_model = reward_model, study.go_on(f"rm-{turn}", reward_model, pool)
        answers = study.generate("heldout", f"heldout-{turn}", policy)
        turns.append({"turn": turn, **measure_turn(policy, answers, before, reward_model)})
    start = read_figures(study.run("ppo-1") / "steps.csv")[0]
    return {"seed": study.seed, "start_gold": gold_of(start), "turns": turns}


# Showing


def show(result: dict[str, Any], console: Console) -> None:
    """The table for people."""
    table = Table(title="Co-evolution", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("turn", "gold of policy", "right before", "right after", "change"):
        table.add_column(name, justify="right")
    table.add_row("0", spoken(result["start_gold"]), "-", "-", "-")
    for turn in result["turns"]:
        cells = [spoken(turn["accuracy"][name], digits=3) for name in ("before", "after", "change")]
        mark = " *" if turn["is_old_round"] else ""
        table.add_row(f"{turn['turn']}{mark}", spoken(turn["policy_gold"]), *cells)
    console.print(table)
    pairs = ", ".join(f"{turn['num_pairs']:,} pairs of {turn['num_prompts']:,} prompts" for turn in result["turns"])
    console.print(
        "right: share of the pairs of the policy's own answers to held-out prompts that the reward model orders as the "
        f"gold score does, before and after it has evolved on this policy's answers ({pairs}). Intervals: 95 %."
    )
    if any(turn["is_old_round"] for turn in result["turns"]):
        console.print("* no new round was better on the seed: the model that was there is delivered again.")


def spoken(interval: dict[str, float], digits: int = 2) -> str:
    """An estimate and, below it, its interval."""
    return f"{interval['estimate']:.{digits}f}\n({interval['low']:.{digits}f} to {interval['high']:.{digits}f})"


def read_flags(settings: Sequence[str]) -> dict[str, list[str]]:
    """`ppo=trainer.max_epochs=1` and the like as flags by kind of step."""
    flags: dict[str, list[str]] = {}
    for setting in settings:
        kind, _, flag = setting.partition("=")
        if kind not in STEPS or not flag:
            raise UserError(f"--set: got {setting}; need STEP=KEY=VALUE with a step of {', '.join(STEPS)}")
        flags.setdefault(kind, []).append(f"--{flag}")
    return flags


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, measure, show; 0, or 2 after a line for each problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/coevolve"), help="for the runs of all steps")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="random seed and split of all steps")
    parser.add_argument("--rm", type=Path, help="a finished run of rm.yaml with that split, instead of a new one")
    parser.add_argument("--set", action="append", default=[], metavar="STEP=KEY=VALUE", help=f"of {', '.join(STEPS)}")
    parser.add_argument(
        "--out", type=Path, help=f"results of a study to add the result to, such as {RESULTS.file.name}"
    )
    args = parser.parse_args(argv)
    try:
        if args.turns < 1:
            raise UserError(f"--turns: got {args.turns}; need at least 1")
        result = take_turns(Study(args.folder, args.seed, read_flags(args.set)), args.turns, args.rm)
    except UserError as error:
        print(*(f"error: {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
        return 2
    words = ["python", "-m", "benchmarks.coevolution.run", *(sys.argv[1:] if argv is None else argv)]
    record = {"command": " ".join(words), "versions": versions(), **result}
    (args.folder / "coevolve.json").write_text(json.dumps(record, indent=1) + "\n")
    if args.out is not None:
        Results(args.out, *RESULTS.key).add(record)
    show(result, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
