"""What `validate` shows of a module whose figures are no accuracies."""

from types import SimpleNamespace

import pytest
import torch

from ser_lightning.callbacks.evaluation import EvaluationCallback


@pytest.mark.parametrize(("stage", "shown"), [("validate", True), ("fit", False)])
def test_figures_of_another_module_are_a_table_where_they_were_asked_for(stage, shown, capsys):
    metrics = {"val/loss": torch.tensor(0.123456), "val/perplexity": torch.tensor(1234.56)}
    state = SimpleNamespace(fn=stage)
    trainer = SimpleNamespace(is_global_zero=True, state=state, callback_metrics=metrics, default_root_dir=".")
    EvaluationCallback().on_validation_end(trainer, None)
    words = [word for word in capsys.readouterr().out.split() if "─" not in word]
    assert words == (["metric", "val", "loss", "0.1235", "perplexity", "1235"] if shown else [])
