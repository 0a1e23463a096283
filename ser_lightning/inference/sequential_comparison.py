"""Which of two models is better, told as early as the pairs allow: they are scored until one is ahead for sure."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ser_lightning.errors import UserError
from ser_lightning.evaluation.metrics import half_credit
from ser_lightning.evaluation.paired_tests import first_decision
from ser_lightning.inference.compared_pairs import NOTHING_SCORED, prompts_of, targets
from ser_lightning.inference.scoring_rows import FileRow
from ser_lightning.inference.sides import CHUNK, Side

ALPHA = 0.05


def decide(rows: Sequence[FileRow], sides: Sequence[Side]) -> list[str]:
    """Score prompts in random order until one model is better for sure.

    Args:
        rows: labelled pairs.
        sides: both models.

    Returns:
        Lines that say which model is better and after how many pairs, or that there is no decision.

    Raises:
        UserError: no pair has a reward from both.
    """
    prompts = _by_prompt(rows)
    seen: list[Tensor] = []
    found = first_decision(_changes(prompts, sides, seen), len(prompts), ALPHA)
    change = torch.cat(seen)
    usable = torch.isfinite(change)
    if not usable.any():
        raise UserError(NOTHING_SCORED)
    unscored, are_alone = int((~usable).sum()), len(prompts) == len(rows)
    lines = [f"{unscored} pairs have no reward from one of both and count for neither."] if unscored else []
    if found is None:
        only = f"{int((change < 0).sum())} only A right, {int((change > 0).sum())} only B."
        won = [int(torch.sign(one.nansum())) for one in seen]
        of_prompts = f" By prompts, A wins {won.count(-1)} of {len(prompts)}, B {won.count(1)}."
        return [*lines, f"No decision after all {len(rows)} pairs: {only}{'' if are_alone else of_prompts}"]
    looked, lead = found
    of_prompts = "" if are_alone else f", {looked} of {len(prompts)} prompts"
    winner = "B" if lead > 0 else "A"
    return [*lines, f"{winner} is better, sure after {len(change)} of {len(rows)} pairs{of_prompts} (5 % error)."]


def _by_prompt(rows: Sequence[FileRow]) -> list[list[FileRow]]:
    """The rows of each prompt, in the order of the prompts in the file."""
    found: dict[int, list[FileRow]] = {}
    for row, prompt in zip(rows, prompts_of(rows).tolist(), strict=True):
        found.setdefault(prompt, []).append(row)
    return list(found.values())


def _changes(prompts: Sequence[list[FileRow]], sides: Sequence[Side], seen: list[Tensor]) -> Iterator[float]:
    """Credit of B less that of A, prompt by prompt in a random order; a pair counts 0 where one has no reward.

    Those of each prompt's pairs are added to `seen`, NaN where one has no reward.
    """
    order = np.random.default_rng(0).permutation(len(prompts))
    for start in range(0, len(order), CHUNK // 8):
        chunk = [prompts[i] for i in order[start : start + CHUNK // 8]]
        rows = [row for pairs in chunk for row in pairs]
        target = targets(rows)
        margins = [values[0] - values[2] for values in (side.score(rows) for side in sides)]
        usable = torch.isfinite(margins[0]) & torch.isfinite(margins[1])
        change = half_credit(margins[1], target) - half_credit(margins[0], target)
        for one in torch.where(usable, change, torch.nan).split([len(pairs) for pairs in chunk]):
            seen.append(one)
            yield float(one.nansum())
