"""Which wrong labels does evolution keep on real preferences? Read off the runs that `run.py` has left in --scratch.

    python -m benchmarks.real_preferences.mistakes    # adds to mistakes.jsonl
    python -m benchmarks.tables                       # writes the table into docs/results.md

Of the first round, which everything after it is built on. Length is in characters; two responses are alike or unlike in
length if the ratio of their lengths is in the lowest or the highest third of the pool.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.optimize import minimize

from benchmarks.real_preferences.run import SETTINGS, labelled, tested_fifth
from benchmarks.shared.markdown import table
from benchmarks.shared.results import Results, Run

MISTAKES = Results(Path(__file__).parent / "mistakes.jsonl", "setting", "seed")
RUN = re.compile(r"(?P<setting>.+-\d+)-ours-(?P<seed>\d+)")
NAMES = {
    "longer_by_people": "people prefer the longer, of the kept pairs",
    "longer_by_model": "the model does",
    "wrong_that_say_longer": "wrong kept labels that say the longer",
    "kept_alike": "kept, of alike length",
    "kept_unlike": "of unlike length",
    "right_alike": "kept labels right, alike",
    "right_unlike": "unlike",
    "right_by_margin": "pool right, by the margin",
    "right_by_both": "by margin and length",
}


def mistakes(
    people: NDArray[np.int64], model: NDArray[np.int64], kept: NDArray[np.bool_], length: NDArray[np.int64]
) -> dict[str, float]:
    """Shares that say which labels are kept and which of them are wrong; NaN where there is nothing to share.

    Args:
        people: (N,) 1 where people prefer response a.
        model: (N,) 1 where the model does.
        kept: (N,) whether the model's label is trained on.
        length: (N, 2) of both responses.
    """
    is_longer_a = length[:, 0] > length[:, 1]
    ratio = np.abs(np.log1p(length[:, 0]) - np.log1p(length[:, 1]))
    alike, unlike = ratio <= np.quantile(ratio, 1 / 3), ratio >= np.quantile(ratio, 2 / 3)
    right = people == model
    return {
        "longer_by_people": _share((people == is_longer_a)[kept]),
        "longer_by_model": _share((model == is_longer_a)[kept]),
        "wrong_that_say_longer": _share((model == is_longer_a)[kept & ~right]),
        "kept_alike": _share(kept[alike]),
        "kept_unlike": _share(kept[unlike]),
        "right_alike": _share(right[kept & alike]),
        "right_unlike": _share(right[kept & unlike]),
    }


def right_with_length(
    people: NDArray[np.int64], margin: NDArray[np.float64], length: NDArray[np.int64]
) -> dict[str, float]:
    """How well the margin orders pairs, and how well margin and length do together, by two-fold logistic regression.

    The second is more only if length says something about people's labels that the margin does not: the regression has
    the hidden labels of the other half, which no run has.

    Args:
        people: (N,) 1 where people prefer response a.
        margin: (N,) reward of a minus reward of b.
        length: (N, 2) of both responses.
    """
    ratio = np.log1p(length[:, 0]) - np.log1p(length[:, 1])
    features = np.stack([margin / margin.std(), ratio / ratio.std()], axis=1)
    half, sign = np.arange(len(people)) % 2 == 0, 2 * people - 1
    right = []
    for fitted in (half, ~half):
        weight = _logistic_weights(features[fitted] * sign[fitted, None])
        right.append((features[~fitted] @ weight > 0) == people[~fitted])
    return {"right_by_margin": _share((margin > 0) == people), "right_by_both": _share(np.concatenate(right))}


def _logistic_weights(signed: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2,) of a logistic regression without a constant, so that a and b may change places; (N, 2) times +1 or -1."""
    found: NDArray[np.float64] = minimize(lambda w: np.logaddexp(0, -signed @ w).mean(), np.zeros(2)).x
    return found


def _share(is_true: NDArray[np.bool_]) -> float:
    return float(is_true.mean()) if is_true.size else float("nan")


def first_round(run: Path, train: Path) -> dict[str, float]:
    """`mistakes` and `right_with_length` of a run's first round."""
    pairs, audit = labelled(train), pq.read_table(run / "rounds/0/audit.parquet").to_pydict()
    own = [pairs[i] for i in audit["pair_id"]]
    people = np.array([pair.label for pair in own])
    length = np.array([(len(pair.response_a), len(pair.response_b)) for pair in own])
    margin = np.array(audit["reward_a"]) - np.array(audit["reward_b"])
    kept = mistakes(people, np.array(audit["label"]), np.array(audit["kept"]), length)
    return {**kept, **right_with_length(people, margin, length)}


def mistakes_table(runs: Sequence[Run]) -> str:
    """One line a setting: means over its runs."""
    rows = []
    for setting in sorted({run["setting"] for run in runs}, key=[*SETTINGS].index):
        own = [run for run in runs if run["setting"] == setting]
        figures = [f"{np.nanmean([run[name] for run in own]):.1%}" for name in NAMES]
        rows.append([setting, str(len(own)), *figures])
    return table(["setting", "runs", *NAMES.values()], rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path("runs/benchmark/study"))
    scratch = parser.parse_args().scratch
    for run in sorted(scratch.glob("*-ours-*")):
        if (name := RUN.fullmatch(run.name)) and (run / "rounds/0/audit.parquet").is_file():
            setting, seed = name["setting"], int(name["seed"])
            data, fifth = SETTINGS[setting].data, tested_fifth(SETTINGS[setting], seed)
            train = scratch / "data" / f"{data}-{fifth}-train.jsonl"
            MISTAKES.add({"setting": setting, "seed": seed, **first_round(run, train)})


if __name__ == "__main__":
    main()
