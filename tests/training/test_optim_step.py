"""How often a step makes the host wait for the device: on CUDA each such call would stop the flow of kernels."""

import pytest
import torch
from lightning.pytorch import seed_everything

from tests.helpers import data, module, trainer

WAITS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__")


@pytest.fixture
def waits(monkeypatch):
    """Names of the calls that fetch a value from a tensor, in their order, while it is switched on."""
    found = []

    def counted(name):
        original = getattr(torch.Tensor, name)

        def call(self, *args, **kwargs):
            found.append(name)
            return original(self, *args, **kwargs)

        return call

    def getitem(self, index, original=torch.Tensor.__getitem__):
        if isinstance(index, torch.Tensor) and index.dtype == torch.bool:
            found.append("boolean index")
        return original(self, index)

    for name in WAITS:
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    monkeypatch.setattr(torch.Tensor, "__getitem__", getitem)
    return found


def waits_of_a_step(model, batch, waits):
    """Calls in the module's own part of a step; the optimiser's are its own affair (none when it is fused)."""
    optimizer = model.optimizers()
    step, during = optimizer.step, []
    optimizer.step = lambda *args, **kwargs: (during.append(list(waits)), step(*args, **kwargs), waits.clear())
    waits.clear()
    model.training_step(batch, 0)
    optimizer.step = step
    [before] = during
    return before + waits


def test_a_step_of_the_reward_model_waits_once(tiny_model_dir, pairs_file, waits):
    seed_everything(0, verbose=False)
    model = module(tiny_model_dir)
    counts = []

    def on_train_batch_start(batch, batch_idx):
        assert len(batch) > 1  # several micro-batches
        counts.append(waits_of_a_step(model, batch, waits))

    model.on_train_batch_start = on_train_batch_start
    trainer("run", max_epochs=1, limit_train_batches=2).fit(model, data(pairs_file, tokens_per_batch=128))
    assert counts == [["tolist"]] * 2


def test_a_batch_is_scored_without_waiting(tiny_model_dir, pairs_file, waits):
    model = module(tiny_model_dir)
    counts = []
    predict_step = model.predict_step

    def counted(batch, batch_idx=0):
        waits.clear()
        scores = predict_step(batch, batch_idx)
        counts.append(list(waits))
        return scores

    model.predict_step = counted
    trainer("run").predict(model, data(pairs_file), return_predictions=False)
    assert counts and not any(counts)
