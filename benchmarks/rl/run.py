"""Does the gold score rise? The RL stage on the synthetic dataset, over random seeds.

    python -m benchmarks.rl.run         # makes the runs that are missing in results.jsonl
    python -m benchmarks.tables         # writes the table into docs/rl.md

For each random seed: the reward model of `rm.yaml` (taken from --scratch where `benchmarks/rules` has left it),
`sft.yaml`, and `ppo.yaml` with each estimator. Starting and trained policy then answer the same prompts with the same
random numbers: new prompts of the world that no run has seen. Settings were chosen on random seed 0, which is not among
these.
"""

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch

from benchmarks.rules.tables import RESULTS as RULES
from benchmarks.shared.results import Results, Run, read_figures, versions
from benchmarks.shared.runs import as_typed, fit_words, run_child, run_missing, study_arguments

CONDITIONS = {
    "gae": [],
    "rloo": ["--model.advantage=rloo", "--model.responses_per_prompt=4", "--data.prompts_per_step=32"],
    "grpo": ["--model.advantage=grpo", "--model.responses_per_prompt=4", "--data.prompts_per_step=32"],
}
NUM_PROMPTS, RESPONSES_PER_PROMPT = 1000, 2
Measure = Callable[[str, int, Path], Run]


def run_once(config: str, run: Path, seed: int, flags: list[str]) -> str:
    """One fit, gone on with where it was broken off; the command as a user would type it."""
    words = fit_words(run, seed, flags, config)
    run_child([*words, "--ckpt_path=auto"])
    return as_typed(words, run)


def new_prompts(seed: int, seen: set[int]) -> list[list[dict]]:
    """Prompts of the world that are in no file of a run."""
    from ser_lightning.data.formats import prompt_hash
    from ser_lightning.synthetic.world import write_prompt

    generator, found = random.Random(f"rl study {seed}"), {}
    while len(found) < NUM_PROMPTS:
        turns = [{"role": "user", "content": write_prompt(generator)}]
        if prompt_hash(turns) not in seen:
            found[prompt_hash(turns)] = turns
    return list(found.values())


def seen_prompts(seed: int) -> set[int]:
    """Ids of all prompts of a random seed's pairs, its test pairs included."""
    from ser_lightning.data.formats import prompt_hash
    from ser_lightning.synthetic.world import generate_pairs

    return {prompt_hash([{"role": "user", "content": pair.prompt}]) for pair in generate_pairs(2000, seed)}


def answer(run: Path, prompts: list[list[dict]], reward_model: Path) -> dict[str, torch.Tensor]:
    """Gold score, reward and length of a policy's responses, (prompts, responses) each."""
    from ser_lightning.data.encode import encode_prompts
    from ser_lightning.models.backbone import Backbone, load_tokenizer
    from ser_lightning.models.policy import load_policy
    from ser_lightning.rl.reward_sources import load_reward
    from ser_lightning.rl.rollout import Generator, Sampling, response_texts, stop_ids, uniform_numbers
    from ser_lightning.runs.policy_run import resolve_start
    from ser_lightning.synthetic.world import gold_scores

    start = resolve_start(Backbone(str(run), train="full"))
    tokenizer, policy = load_tokenizer(start.backbone), load_policy(start.backbone, start=start.weights).eval()
    turns = [prompt for prompt in prompts for _ in range(RESPONSES_PER_PROMPT)]
    stops = stop_ids(policy.lm.generation_config.eos_token_id, tokenizer, [])
    generator = Generator(Sampling(64), stops, int(tokenizer.pad_token_id), 16384)
    numbers = uniform_numbers(("rl study",), len(turns), 64)
    rollout = generator.sample(policy, "policy", encode_prompts(tokenizer, turns, 256), numbers)
    texts = response_texts(tokenizer, rollout)
    columns = {
        "gold": torch.tensor(gold_scores(turns, texts)),
        "reward": load_reward(str(reward_model))(turns, texts),
        "length": rollout.num_response_tokens.float(),
    }
    return {name: column.view(len(prompts), RESPONSES_PER_PROMPT) for name, column in columns.items()}


def measure(condition: str, seed: int, scratch: Path) -> Run:
    """One run of the RL stage: where it started, where it ended, and its steps."""
    torch.set_num_threads(1)
    reward_model, sft, run = (scratch / f"{name}-{seed}" for name in ("ours", "rl-sft", f"rl-{condition}"))
    if not (("ours", seed) in RULES and (reward_model / "rounds.csv").is_file()):
        run_once("rm.yaml", reward_model, seed, [])
    run_once("sft.yaml", sft, seed, [])
    flags = [f"--model.reward_model={reward_model}", f"--model.backbone.path={sft}", *CONDITIONS[condition]]
    began = time.monotonic()
    spoken = run_once("ppo.yaml", run, seed, flags)
    seconds = time.monotonic() - began
    prompts = new_prompts(seed, seen_prompts(seed))
    before, after = answer(sft, prompts, reward_model), answer(run, prompts, reward_model)
    changes = {name: (after[name] - before[name]).mean(1) for name in before}
    return {
        "condition": condition,
        "seed": seed,
        "command": spoken,
        "seconds": round(seconds, 1),
        "prompts": NUM_PROMPTS,
        "responses_per_prompt": RESPONSES_PER_PROMPT,
        "before": {name: float(column.mean()) for name, column in before.items()},
        "after": {name: float(column.mean()) for name, column in after.items()},
        "change": {name: float(change.mean()) for name, change in changes.items()},
        "standard_error": {name: float(change.std() / NUM_PROMPTS**0.5) for name, change in changes.items()},
        "steps": read_figures(run / "steps.csv"),
        "versions": versions(),
    }


def command_line(
    description: str | None, results: Path, conditions: Sequence[str], scratch: str, work: Measure
) -> None:
    """The command line of a study of policies: what is missing is run.

    Args:
        description: docstring of the study.
        results: default file of the results.
        conditions: those that are run where none is named.
        scratch: default folder of the runs.
        work: condition, random seed and `scratch` -> the run; of module level.
    """
    parser = study_arguments(description, results, scratch)
    parser.add_argument("--conditions", nargs="+", default=conditions)
    args = parser.parse_args()
    tasks = product(args.conditions, args.seeds)
    results_file = Results(args.out, "condition", "seed")
    # The conditions of a random seed share its SFT run.
    in_turn = {"together": lambda task: task[1], "in_processes": True}
    run_missing(results_file, tasks, partial(work, scratch=args.scratch), args.jobs, **in_turn)


if __name__ == "__main__":
    command_line(__doc__, Path(__file__).parent / "results.jsonl", ["gae", "rloo"], "runs/benchmark", measure)
