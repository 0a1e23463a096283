"""Does the gold score rise? The RL stage on the embedded synthetic world, over random seeds.

    python benchmarks/rl_study.py                 # resumable: a run whose JSON is there is not repeated
    python benchmarks/tables.py                   # writes the table into docs/rl.md

For each random seed: the reward model of `rm.yaml` (taken from --scratch where `rules.py` has left it), `sft.yaml`, and
`ppo.yaml` with each estimator. Starting and trained policy then answer the same prompts with the same random numbers:
new prompts of the world that no run has seen. One JSON a run goes to `benchmarks/rl/`. Settings were chosen on random
seed 0, which is not among these.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from record import PACKAGES, read_figures

from runs import command

HERE = Path(__file__).parent
CONDITIONS = {
    "gae": [],
    "rloo": ["--model.advantage=rloo", "--model.responses_per_prompt=4", "--data.prompts_per_step=32"],
    "grpo": ["--model.advantage=grpo", "--model.responses_per_prompt=4", "--data.prompts_per_step=32"],
}
NUM_PROMPTS, RESPONSES_PER_PROMPT = 1000, 2
Measure = Callable[[str, int, Path], dict]


def run_once(config: str, run: Path, seed: int, flags: list[str]) -> str:
    """One fit, gone on with where it was broken off; the command as a user would type it."""
    words = command(flags, seed, run)
    words[words.index("rm.yaml")] = config
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*words, "--ckpt_path=auto"], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return " ".join(["python", *words[1:]]).replace(str(run.parent), "runs")


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


def measure(condition: str, seed: int, scratch: Path) -> dict:
    """One run of the RL stage: where it started, where it ended, and its steps."""
    torch.set_num_threads(1)
    reward_model, sft, run = (scratch / f"{name}-{seed}" for name in ("ours", "rl-sft", f"rl-{condition}"))
    if not ((HERE / "rules" / f"ours-{seed}.json").is_file() and (reward_model / "rounds.csv").is_file()):
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
        "versions": {name: __import__(name).__version__ for name in PACKAGES},
    }


def command_line(
    script: str, description: str, conditions: list[str], default: list[str], name: str, scratch: Path, measure: Measure
) -> None:
    """The command line of a study of policies: what is missing is run, each run in a process of its own.

    Args:
        script: file of the study.
        description: its docstring.
        conditions: all that there are.
        default: those that are run where none is named.
        name: folder of the JSON files, beside this script.
        scratch: default folder of the runs.
        measure: condition, random seed and folder of the runs -> what to keep.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--conditions", nargs="*", default=default, choices=conditions)
    parser.add_argument("--out", type=Path, default=HERE / name)
    parser.add_argument("--scratch", type=Path, default=scratch)
    parser.add_argument("--jobs", type=int, default=2, help="random seeds at a time; each gets one thread")
    parser.add_argument("--one", nargs=2, metavar=("CONDITION", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.one:
        condition, seed = args.one[0], int(args.one[1])
        result = measure(condition, seed, args.scratch)
        (args.out / f"{condition}-{seed}.json").write_text(json.dumps(result, indent=1) + "\n")
        return

    def work(seed: int) -> None:  # the conditions of a random seed share its SFT run, so they go one after the other
        for condition in args.conditions:
            if not (args.out / f"{condition}-{seed}.json").is_file():
                flags = ["--out", str(args.out), "--scratch", str(args.scratch)]
                subprocess.run([sys.executable, script, "--one", condition, str(seed), *flags], check=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(work, args.seeds))


if __name__ == "__main__":
    command_line(__file__, __doc__, [*CONDITIONS], ["gae", "rloo"], "rl", Path("runs/benchmark"), measure)
