"""What the language model answers after the judge's question, without a label: Yes or No, for each response.

Shapes: n pairs, H the size of a state.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.readings.heads import Task, View, make_view
from benchmarks.readings.states import StudyPairs
from ser_lightning.evaluation.calibration import fit_temperature
from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.models.readings import Reading
from ser_lightning.training.linear_head import choose_penalty
from ser_lightning.training.reading_choice import candidate_sets

WORDS = ("Yes", "No")


def compute_answers(model: Path, pairs: StudyPairs) -> Tensor:
    """(n, 2) float32 log-odds of Yes against No, from the states after the question and the last layer.

    Args:
        model: folder of the language model that the states are from.
        pairs: with their states.
    """
    tokenizer = load_tokenizer(Backbone(str(model)))
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[0] for word in WORDS)
    rows = AutoModelForCausalLM.from_pretrained(model).get_output_embeddings().weight.detach().float()
    return pairs.at([Reading("judge", pairs.num_layers)])[:, :, 0] @ (rows[yes] - rows[no])


def usual_view(task: Task, answers: Tensor | None = None) -> View:
    """The first set that `auto` tries, and the answer as one number more; penalties are chosen out of fold on the seed.

    The number alone has the mean square that all the numbers of a reading have together, so a head follows it easily.

    Args:
        task: pairs and seed.
        answers: (n, 2) see `compute_answers`, None = none.
    """
    view = make_view(task, candidate_sets(task.pairs.num_layers)[0])
    if answers is None:
        return view
    centred = answers.double() - answers[task.train].double().mean()
    centred = centred / (centred[task.train, 0] - centred[task.train, 1]).square().mean().sqrt()
    first, second = torch.cat([view.first, centred[:, :1]], 1), torch.cat([view.second, centred[:, 1:]], 1)
    target = task.target[task.seed]
    found = choose_penalty((first - second)[task.seed], target, task.group(task.seed).tolist())
    return View(first, second, [*view.readings, "answer"], found.penalty, fit_temperature(found.margin, target))
