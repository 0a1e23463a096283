"""Does a better reward model make a better policy? Embedded synthetic world, three reward models, one starting policy.

    python benchmarks/policy_study.py             # resumable: a run whose JSON is there is not repeated
    python benchmarks/tables.py                   # writes the tables into docs/rl.md

For each random seed: reward models of the seed's labels, evolved from it, and of all labels, all by `rm.yaml` with a
scale fitted out of fold; one `sft.yaml`; `ppo.yaml` with `rloo` against each reward model. The trained policies answer
the same new prompts with the same random numbers as the starting policy. One JSON a run goes to `benchmarks/policy/`.
Settings are those of `rl_study.py`, chosen on random seed 0, which is not among these.
"""

import time
from pathlib import Path

import torch
from record import PACKAGES, read_figures
from rl_study import (
    CONDITIONS,
    NUM_PROMPTS,
    RESPONSES_PER_PROMPT,
    answer,
    command_line,
    new_prompts,
    run_once,
    seen_prompts,
)

ESTIMATOR = "rloo"
NO_ROUNDS = ["--evolution.max_rounds=0"]
REWARD_MODELS = {
    "seed": NO_ROUNDS,
    "evolved": [],
    # 4 epochs: 8, as the seed takes, would be twice the steps for nothing (`rules.py`).
    "all_labels": [*NO_ROUNDS, "--data.seed_fraction=1.0", "--evolution.seed_epochs=4"],
}
MORE_HELD_OUT = ["--data.num_val_prompts=400"]
"""Every prompt of the test pairs: what is said of equal KL is read off these."""


def measure(reward_model: str, seed: int, scratch: Path) -> dict:
    """One policy trained against one reward model: gold score, reward and length of its answers, and its way there."""
    torch.set_num_threads(1)
    judge, sft, run = (scratch / f"{name}-{seed}" for name in (f"rm-{reward_model}", "sft", f"ppo-{reward_model}"))
    run_once("rm.yaml", judge, seed, REWARD_MODELS[reward_model])
    run_once("sft.yaml", sft, seed, [])
    flags = [f"--model.reward_model={judge}", f"--model.backbone.path={sft}", *CONDITIONS[ESTIMATOR], *MORE_HELD_OUT]
    began = time.monotonic()
    spoken = run_once("ppo.yaml", run, seed, flags)
    seconds = time.monotonic() - began
    prompts = new_prompts(seed, seen_prompts(seed))
    before, after = answer(sft, prompts, judge), answer(run, prompts, judge)
    delivered = [row for row in read_figures(judge / "rounds.csv") if row["delivered"]][0]
    return {
        "condition": reward_model,
        "seed": seed,
        "command": spoken,
        "seconds": round(seconds, 1),
        "reward_model_test_accuracy": delivered["test_accuracy"],
        "prompts": NUM_PROMPTS,
        "responses_per_prompt": RESPONSES_PER_PROMPT,
        "gold_before": [round(x, 3) for x in before["gold"].flatten().tolist()],
        "gold_after": [round(x, 3) for x in after["gold"].flatten().tolist()],
        "reward_change": float((after["reward"] - before["reward"]).mean()),
        "length_change": float((after["length"] - before["length"]).mean()),
        "steps": read_figures(run / "steps.csv"),
        "versions": {name: __import__(name).__version__ for name in PACKAGES},
    }


if __name__ == "__main__":
    names = [*REWARD_MODELS]
    command_line(__file__, __doc__, names, names, "policy", Path("runs/benchmark/policy"), measure)
