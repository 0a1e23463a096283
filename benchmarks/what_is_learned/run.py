"""What each round of the runs of `benchmarks/rules` has learned: plain faults, or manners that few labels teach.

    python -m benchmarks.what_is_learned.run runs/benchmark    # the folder of these runs; adds to results.jsonl
    python -m benchmarks.tables                                # writes the table into docs/results.md

Two responses of a pair differ in one kind of evidence only. *Plain*: the sentences of a careful and of a careless
writer, with the same courtesies around them. *Manners*: the same response with one opener that suits the prompt, and
with one that does not. A model that knows nothing is right in half of them. No pair of any data set is used.
"""

import argparse
import random
import re
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from benchmarks.shared.results import Results
from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.models.reward_model import RewardModel, load_reward_model
from ser_lightning.records import Padded
from ser_lightning.synthetic.text import CLOSERS, OPENERS, read_prompt, suits
from ser_lightning.synthetic.world import gold_reward, write_prompt, write_response

Pairs = list[tuple[str, str, str]]
CONDITIONS = "ours", "all_labels"


def contrasts(num_pairs: int, seed: int) -> dict[str, Pairs]:
    """(prompt, better, worse) texts, `num_pairs` of each kind."""
    rng = random.Random(f"contrasts {seed}")
    found: dict[str, Pairs] = {"plain": [], "manners": []}
    while min(map(len, found.values())) < num_pairs:
        prompt = write_prompt(rng)
        careful, careless = (re.findall(r"[^.]+\.", write_response(prompt, skill, rng)) for skill in (1.0, 0.0))
        courtesies = rng.sample(OPENERS, 2), rng.choice(CLOSERS)
        good, bad = (_dress(sentences, *courtesies) for sentences in (careful, careless))
        if gold_reward(prompt, good) > gold_reward(prompt, bad):
            found["plain"].append((prompt, good, bad))
        kind = read_prompt(prompt)[0].kind
        suited = rng.choice([o for o in OPENERS if suits(o, kind)])
        unsuited = rng.choice([o for o in OPENERS if not suits(o, kind)])
        found["manners"].append((prompt, *(_dress(careful, [o], courtesies[1]) for o in (suited, unsuited))))
    return {name: pairs[:num_pairs] for name, pairs in found.items()}


def _dress(sentences: list[str], openers: list[str], closer: str) -> str:
    plain = [s.strip() for s in sentences if s.strip() not in OPENERS + CLOSERS]
    return " ".join([*openers, *plain, closer])


@torch.no_grad()
def share_right(reward_model: RewardModel, tokenizer: PreTrainedTokenizerBase, pairs: Pairs) -> float:
    """Share of pairs whose better response has the higher reward."""
    reward_model.eval()
    rewards = []
    for side in (1, 2):
        chats = [[{"role": "user", "content": p[0]}, {"role": "assistant", "content": p[side]}] for p in pairs]
        batch = tokenizer.apply_chat_template(chats, padding=True, return_tensors="pt", return_dict=True)
        rewards.append(reward_model(Padded(batch["input_ids"], batch["attention_mask"])))
    return float((rewards[0] > rewards[1]).float().mean())


def main() -> None:
    """Measure every round of every run in the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results.jsonl")
    args = parser.parse_args()
    backbone = Backbone("world_lm", train="full")
    tokenizer, reward_model = load_tokenizer(backbone), load_reward_model(backbone)
    results = Results(args.out, "condition", "seed", "round")
    files = [f for c in CONDITIONS for f in args.runs.glob(f"{c}-*/rounds/*/model.pt")]
    for file in sorted(files):
        condition, seed = file.parents[2].name.rsplit("-", 1)
        reward_model.load_trainable_state(torch.load(file, weights_only=True)["weights"])
        figures = {k: share_right(reward_model, tokenizer, v) for k, v in contrasts(args.pairs, int(seed)).items()}
        line = {"condition": condition, "seed": int(seed), "round": int(file.parent.name), **figures}
        results.add({**line, "pairs": args.pairs})
        print(line)


if __name__ == "__main__":
    main()
