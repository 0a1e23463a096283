"""Does a better reward model make a better policy? Embedded synthetic world, three reward models, one starting policy.

    python -m benchmarks.policies.run   # makes the runs that are missing in results.jsonl
    python -m benchmarks.tables         # writes the tables into docs/rl.md

For each random seed: reward models of the seed's labels, evolved from it, and of all labels, all by `rm.yaml` with a
scale fitted out of fold; one `sft.yaml`; `ppo.yaml` with `rloo` against each reward model. The trained policies answer
the same new prompts with the same random numbers as the starting policy. Settings are those of
`benchmarks/rl`, chosen on random seed 0, which is not among these.
"""

import time
from pathlib import Path

import torch

from benchmarks.rl.run import (
    CONDITIONS,
    NUM_PROMPTS,
    RESPONSES_PER_PROMPT,
    answer,
    command_line,
    new_prompts,
    run_once,
    seen_prompts,
)
from benchmarks.shared.results import Run, delivered, read_figures, versions

ESTIMATOR = "rloo"
NO_ROUNDS = ["--evolution.max_rounds=0"]
REWARD_MODELS = {
    "seed": NO_ROUNDS,
    "evolved": [],
    # 4 epochs: 8, as the seed takes, would be twice the steps for nothing (`benchmarks/rules`).
    "all_labels": [*NO_ROUNDS, "--data.seed_fraction=1.0", "--evolution.seed_epochs=4"],
}
MORE_HELD_OUT = ["--data.num_val_prompts=400"]
"""Every prompt of the test pairs: what is said of equal KL is read off these."""


def measure(reward_model: str, seed: int, scratch: Path) -> Run:
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
    return {
        "condition": reward_model,
        "seed": seed,
        "command": spoken,
        "seconds": round(seconds, 1),
        "reward_model_test_accuracy": delivered({"rounds": read_figures(judge / "rounds.csv")})["test_accuracy"],
        "prompts": NUM_PROMPTS,
        "responses_per_prompt": RESPONSES_PER_PROMPT,
        "gold_before": [round(x, 3) for x in before["gold"].flatten().tolist()],
        "gold_after": [round(x, 3) for x in after["gold"].flatten().tolist()],
        "reward_change": float((after["reward"] - before["reward"]).mean()),
        "length_change": float((after["length"] - before["length"]).mean()),
        "steps": read_figures(run / "steps.csv"),
        "versions": versions(),
    }


if __name__ == "__main__":
    command_line(__doc__, Path(__file__).parent / "results.jsonl", [*REWARD_MODELS], "runs/benchmark/policy", measure)
