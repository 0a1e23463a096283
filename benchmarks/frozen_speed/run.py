"""What does evolution cost with a frozen body once its states are cached, and what does `auto` add to the pass?

    python -m benchmarks.frozen_speed.run --data-dir FOLDER --model FOLDER   # makes the measurements that are missing
    python -m benchmarks.tables                                              # writes the table into docs/performance.md

`evolution`: 5,000 made-up pairs, a quarter of them mislabelled, and a body of the width of a 0.5B model (one layer,
random weights, so that the pass itself is short), read at two places. The first fit writes the states; the second finds
them, and is the one that is timed.

`pass`: the first pairs of PandaLM under a real model, with the standard reading and with `auto`, which reads the seed
(15 % of the labelled pairs, as in `rm.yaml`) at more places, in turns and with caches of their own. The pass is what a
fit that writes states takes more CPU time for than one that finds them.
"""

import json
import random
import resource
from functools import partial
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.real_preferences.run import DATA
from benchmarks.shared.results import Results, Run, machine, read_figures, versions
from benchmarks.shared.runs import (
    add_pairs_and_model,
    child_environment,
    fit_words,
    run_child,
    run_missing,
    study_arguments,
)
from benchmarks.shared.tiny_model import byte_tokenizer, write_pairs

HERE = Path(__file__).parent
NUM_PAIRS = 5000
WIDTH = {
    "hidden_size": 896,
    "intermediate_size": 1792,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
}
WRONG_SHARE = 0.25
"""Of the labels: what can be told apart without a mistake would take a head for ever, and is nobody's."""
NUM_REAL_PAIRS = 100
READINGS = {"standard": "[last]", "auto": "auto"}
THREADS = 2


def timed_fit(run: Path, flags: list[str]) -> dict[str, float]:
    """CPU seconds of a fit, and the wall-clock seconds of its rounds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_child(fit_words(run, 1, flags), child_environment(THREADS))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rounds = read_figures(run / "rounds.csv")
    return {"cpu_seconds": cpu, "round_seconds": sum(row["seconds"] for row in rounds), "rounds": len(rounds) - 1}


def mislabelled(line: str, number: int) -> str:
    """A pair whose responses change places, for a share of the numbers."""
    row = json.loads(line)
    if random.Random(number).random() < WRONG_SHARE:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return json.dumps(row) + "\n"


def evolution(seed: int, scratch: Path) -> Run:
    """A whole evolution on states that an earlier run left: three rounds, five folds."""
    folder, pairs = scratch / "wide", scratch / "pairs.jsonl"
    write_pairs(pairs, NUM_PAIRS)
    pairs.write_text("".join(map(mislabelled, pairs.read_text().splitlines(keepends=True), range(NUM_PAIRS))))
    tokenizer = byte_tokenizer()
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**WIDTH, **ids, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    flags = ["--config", "frozen.yaml", "--config", "hardware/cpu.yaml", f"--model.backbone.path={folder}"]
    flags += [f"--data.path={pairs}", f"--data.cache_dir={scratch / 'cache'}"]
    flags += ["--model.reading=[last,mean]", "--evolution.rule.min_change_share=0"]  # all three rounds
    timed_fit(scratch / f"evolution-{seed}-first", flags)
    return timed_fit(scratch / f"evolution-{seed}", flags)


def passes(seed: int, data_dir: Path, model: Path, scratch: Path) -> Run:
    """CPU seconds of the pass over the same pairs with either reading."""
    rows = (data_dir / DATA["pandalm"][0][0]).read_text(encoding="utf-8").splitlines()[:NUM_REAL_PAIRS]
    pairs = scratch / "real.jsonl"
    pairs.write_text("\n".join(rows) + "\n", encoding="utf-8")
    found: Run = {"pairs": NUM_REAL_PAIRS}
    for name, reading in READINGS.items():
        cache = scratch / f"cache-{name}-{seed}"
        flags = ["--config", "frozen.yaml", "--config", "hardware/cpu.yaml", f"--model.backbone.path={model}"]
        flags += [f"--data.path={pairs}", f"--data.cache_dir={cache}", f"--model.reading={reading}"]
        flags += ["--model.backbone.dtype=bfloat16", "--evolution.max_rounds=0"]
        times = [timed_fit(scratch / f"{name}-{seed}-{turn}", flags)["cpu_seconds"] for turn in ("writes", "finds")]
        found[name] = {"cpu_seconds": times[0] - times[1], "cpu_seconds_from_cache": times[1]}
    return found


def measure(name: str, seed: int, data_dir: Path, model: Path, scratch: Path) -> Run:
    """One repetition of a measurement."""
    work = partial(evolution, seed, scratch) if name == "evolution" else partial(passes, seed, data_dir, model, scratch)
    return {"condition": name, "seed": seed, **work(), "machine": machine(), "versions": versions()}


def main() -> None:
    """Command line."""
    parser = study_arguments(__doc__, HERE / "results.jsonl", "runs/benchmark/frozen_speed")
    add_pairs_and_model(parser)
    parser.set_defaults(seeds=[1, 2, 3], jobs=1)
    args = parser.parse_args()
    args.scratch.mkdir(parents=True, exist_ok=True)
    tasks = [(name, seed) for seed in args.seeds for name in ("evolution", "pass")]
    work = partial(measure, data_dir=args.data_dir, model=args.model.resolve(), scratch=args.scratch.resolve())
    run_missing(Results(args.out, "condition", "seed"), tasks, work, args.jobs)


if __name__ == "__main__":
    main()
