"""What `compare` asks for rewards: a model, or a file of rewards that `score` wrote. N rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ser_lightning.errors import UserError
from ser_lightning.inference.scorer import Scorer
from ser_lightning.inference.scoring_rows import FileRow
from ser_lightning.rl.reward_functions import ModelReward
from ser_lightning.runs.config import setting
from ser_lightning.runs.files import delivered_round, is_run, round_files
from ser_lightning.runs.reward_run import read_reward_checkpoint

_LEAST = 1e-6
"""No probability of a file counts as nearer to 0 or 1."""
_MOST_ODDS = 10
"""In logits: of larger ones, float32 holds too few digits of the probability."""
CHUNK = 256
"""Rows that are scored at a time."""


class Side(Protocol):
    """Something that gives rows rewards."""

    @property
    def temperature(self) -> float:
        """Divides differences of rewards before the sigmoid."""

    def score(self, rows: Sequence[FileRow]) -> Tensor:
        """(4, N) reward and tokens of the first response, reward and tokens of the second; NaN where it cannot."""


@dataclass
class ModelSide:
    """A model that scores as it is asked."""

    scorer: Scorer

    @property
    def temperature(self) -> float:
        """The model's."""
        return self.scorer.temperature

    def score(self, rows: Sequence[FileRow]) -> Tensor:
        """Rows that do not fit have no reward."""
        found = torch.full((4, len(rows)), torch.nan)
        encoded = self.scorer.encode([row.pair for row in rows])
        places = [i for i, pair in enumerate(encoded) if pair]
        pairs = [pair for pair in encoded if pair]
        if places:
            rewards = self.scorer.score_encoded(pairs, 2, lambda number: None)
            lengths = torch.tensor([[len(p.ids_a) for p in pairs], [len(p.ids_b) for p in pairs]]).float()
            found[:, places] = torch.stack([rewards[0], lengths[0], rewards[1], lengths[1]])
        return found


class FileSide:
    """Rewards that `score` wrote down.

    Raises:
        UserError: it holds no rewards of pairs, or rewards of other pairs.
    """

    temperature = 1.0

    def __init__(self, file: Path, rows: Sequence[FileRow], num_rows: int) -> None:
        table = _read_table(file)
        names = next((pair for pair in (("_chosen", "_rejected"), ("_a", "_b")) if f"reward{pair[0]}" in table), None)
        if names is None or "row" not in table:
            raise UserError(f"{file}: got no rewards of pairs in it; give a file that `score` wrote")
        wanted = [f"{kind}{side}" for side in names for kind in ("reward", "tokens")]
        if missing := [name for name in (*wanted, "probability", "content") if name not in table]:
            raise UserError(f"{file}: got no column {missing[0]}; run `score` again")
        self._place = {row: i for i, row in enumerate(table["row"])}
        strangers = [row for row in self._place if not isinstance(row, int) or not 0 <= row < num_rows]
        known = [row for row in rows if row.number in self._place]
        strangers += [row.number for row in known if row.content != table["content"][self._place[row.number]]]
        if strangers or not self._place:
            example = f", such as row {strangers[0]}" if strangers else ""
            raise UserError(f"{file}: got rewards of other texts than those of --data{example}; give the same data")
        try:
            self._values = torch.tensor([table[name] for name in wanted], dtype=torch.float32)
            odds = torch.tensor(table["probability"], dtype=torch.float64).clamp(_LEAST, 1 - _LEAST).logit()
        except (TypeError, ValueError) as error:
            raise UserError(f"{file}: got rewards that are no numbers ({error}); run `score` again") from error
        self.temperature = _temperature((self._values[0] - self._values[2]).double(), odds)

    def score(self, rows: Sequence[FileRow]) -> Tensor:
        """Look the rows up by their number."""
        found = torch.full((4, len(rows)), torch.nan)
        for i, row in enumerate(rows):
            if (place := self._place.get(row.number)) is not None:
                found[:, i] = self._values[:, place]
        return found


def _temperature(margin: Tensor, odds: Tensor) -> float:
    """What margins were divided by to have these odds, which are cut off at both ends."""
    usable = (margin != 0) & (odds.abs() > 1e-3)
    is_exact = usable & (odds.abs() < _MOST_ODDS)
    ratio = margin / odds
    if is_exact.any():
        return float(ratio[is_exact].median())
    return float(ratio[usable].min()) if usable.any() else 1.0


def _read_table(file: Path) -> dict[str, list[Any]]:
    """The columns of a file that `score` wrote."""
    try:
        if file.suffix == ".jsonl":
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
            return {name: [row[name] for row in rows] for name in (rows or [{}])[0]}
        read = pyarrow.parquet.read_table if file.suffix == ".parquet" else pyarrow.csv.read_csv
        return dict(read(file).to_pydict())
    except (pa.ArrowException, ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{file}: got no table of rewards ({reason}); give a file that `score` wrote") from error


def open_side(name: str, rows: Sequence[FileRow], num_rows: int, trust_remote_code: bool = False) -> Side:
    """A model, or a file of its rewards of these rows, of `num_rows` in their file."""
    if Path(name).is_file():
        return FileSide(Path(name), rows, num_rows)
    return ModelSide(Scorer.load(name, trust_remote_code=trust_remote_code))


def score_all(side: Side, rows: Sequence[FileRow], name: str) -> Tensor:
    """(4, N) what `Side.score` gives for all rows, with a progress bar."""
    if isinstance(side, FileSide):
        return side.score(rows)
    with tqdm(total=len(rows), desc=f"Scoring with {Path(name).name}", unit=" pairs", disable=None) as bar:
        parts = []
        for start in range(0, len(rows), CHUNK):
            parts.append(side.score(rows[start : start + CHUNK]))
            bar.update(parts[-1].shape[1])
    return torch.cat(parts, 1)


def is_student(name: str) -> bool:
    """Whether a run has learned pseudo-labels of its pool from its first round on (`data.teacher`)."""
    return is_run(Path(name)) and bool(setting(Path(name), "data", "init_args").get("teacher"))


def predicting_side(name: str, side: Side, trust_remote_code: bool = False) -> Side:
    """What predicts how right a side is on pairs without labels: the side, or the seed model of a run that evolved.

    A delivered model of a later round was trained on its run's own labels of the pool, and is surer there than on other
    pairs. The model of round 0 has seen no pool pair.

    Raises:
        UserError: the model of round 0 is gone or damaged.
    """
    run = Path(name)
    if not (isinstance(side, ModelSide) and is_run(run) and delivered_round(run) > 0):
        return side
    _, seed = read_reward_checkpoint(round_files(run, 0).model, trust_remote_code)
    place = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = seed.load(place)
    model.requires_grad_(False).to(place)
    reward = ModelReward(model, tokenizer, seed.max_length, seed.zero, seed.temperature, f"{name} (round 0)")
    return ModelSide(Scorer(reward))
