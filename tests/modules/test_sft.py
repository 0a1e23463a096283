import math

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from transformers import AutoModelForCausalLM

from ser_lightning.errors import UserError
from tests.helpers import equal, trainer
from tests.policy_runs import loaded, responses, sft


class Breaks(Callback):
    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 4:  # in the middle of the second epoch
            raise KeyError("killed")


class LogLearningRate(Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_end(self, trainer, *args):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


class LogLoss(Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, *args):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))


def train(path, pairs, name, *callbacks, epochs=2, way="full", data=None, limits=None, **kwargs):
    seed_everything(0, verbose=False)
    module = sft(path, way, **kwargs)
    trainer(name, *callbacks, max_epochs=epochs, **(limits or {})).fit(module, responses(pairs, **(data or {})))
    return module


def weights(module):
    return {name: value.clone() for name, value in module.policy.trainable_state().items()}


def set_up(pairs, tokenizer, **kwargs):
    """A data module of its own; without a trainer its loader is that of the first epoch."""
    data = responses(pairs, **kwargs)
    data.tokenizer = tokenizer
    data.prepare_data()
    data.setup("fit")
    return data


def plain_loss(model, tokenizer, batches):
    """Mean cross entropy of transformers, over all batches, with labels only after the assistant's mark."""
    total, num_tokens = torch.zeros(()), 0
    for batch in batches:
        for ids, real in zip(batch.inputs.input_ids, batch.inputs.attention_mask.bool(), strict=True):
            row = ids[real]
            text = tokenizer.decode(row)
            prompt = text[: text.index("<assistant>") + len("<assistant>")]
            labels = row.clone()
            labels[: len(tokenizer(prompt, add_special_tokens=False).input_ids)] = -100
            count = int((labels != -100).sum())
            total = total + count * model(input_ids=row[None], labels=labels[None]).loss
            num_tokens += count
    return total / num_tokens


@pytest.mark.parametrize("limits", [{"max_epochs": -1, "max_steps": 12}, {"max_epochs": 9, "max_steps": 12}])
def test_the_learning_rate_falls_up_to_the_step_that_ends_the_fit(tiny_model_dir, pairs_file, limits):
    log = LogLearningRate()
    module = sft(tiny_model_dir, warmup_share=0.0)
    module.optimizer = lambda p: torch.optim.SGD(p, lr=1.0)
    trainer("run", log, limit_train_batches=2, **limits).fit(module, responses(pairs_file))
    assert log.rates == pytest.approx([1 - step / 12 for step in range(12)])


@pytest.mark.parametrize("way", ["full", "lora"])
def test_the_loss_is_the_cross_entropy_of_plain_transformers(tiny_model_dir, pairs_file, tiny_tokenizer, way):
    module = loaded(sft(tiny_model_dir, way))
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    steps = set_up(pairs_file, tiny_tokenizer, tokens_per_batch=100).train_dataloader()
    for step in steps:
        assert len(step) > 1
        loss = sum(float(-module(batch).detach().sum()) / batch.num_step_tokens for batch in step)
        assert loss == pytest.approx(float(plain_loss(plain, tiny_tokenizer, step).detach()), rel=1e-5)


def test_one_step_is_plain_sgd_on_the_mean_loss_of_its_tokens(tiny_model_dir, pairs_file, tiny_tokenizer):
    """Oracle: transformers and autograd, row by row, in the test."""
    log = LogLoss()
    seed_everything(0, verbose=False)
    module = sft(tiny_model_dir, max_grad_norm=1e9, warmup_share=0.0)
    module.optimizer = lambda p: torch.optim.SGD(p, lr=0.5)
    trainer("run", log, max_epochs=1, limit_train_batches=1).fit(module, responses(pairs_file, tokens_per_batch=100))
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    step = next(iter(set_up(pairs_file, tiny_tokenizer).train_dataloader()))
    loss = plain_loss(plain, tiny_tokenizer, step)
    loss.backward()
    assert log.losses == pytest.approx([float(loss.detach())])
    trained = dict(module.policy.lm.named_parameters())
    for name, p in plain.named_parameters():
        assert torch.allclose(trained[name], p - 0.5 * p.grad, atol=1e-6), name


def test_a_step_is_no_longer_than_the_clipped_gradient(tiny_model_dir, pairs_file):
    seed_everything(0, verbose=False)
    module = sft(tiny_model_dir, max_grad_norm=1e-3, warmup_share=0.0)
    module.optimizer = lambda p: torch.optim.SGD(p, lr=1.0)
    trainer("run", max_epochs=1, limit_train_batches=1).fit(module, responses(pairs_file))
    before = dict(AutoModelForCausalLM.from_pretrained(tiny_model_dir).named_parameters())
    moved = [(p - before[name]).square().sum() for name, p in module.policy.lm.named_parameters()]
    assert float(sum(moved).sqrt()) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("way", ["full", "lora"])
def test_the_token_budget_cuts_steps_without_changing_them(tiny_model_dir, pairs_file, way):
    one, other = (
        weights(train(tiny_model_dir, pairs_file, str(budget), way=way, data={"tokens_per_batch": budget}))
        for budget in (1, 100_000)
    )
    start = weights(loaded(sft(tiny_model_dir, way)))
    assert one.keys() == other.keys() == start.keys()
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one)
    assert any(not torch.allclose(one[name], start[name], atol=1e-3) for name in one)


@pytest.mark.parametrize(("way", "share"), [("full", 0.8), ("lora", 0.98)])
def test_it_learns_and_leaves_the_frozen_base_alone(tiny_model_dir, pairs_file, way, share):
    log = LogLoss()
    module = train(tiny_model_dir, pairs_file, "run", log, epochs=6, way=way, lr=1e-2)
    assert sum(log.losses[-3:]) < share * sum(log.losses[:3])
    start = dict(loaded(sft(tiny_model_dir, way)).named_parameters())
    moved = {name for name, p in module.named_parameters() if not torch.equal(p, start[name])}
    assert moved == {name for name, p in module.named_parameters() if p.requires_grad}
    assert any("lora" in name for name in moved) == (way == "lora")


@pytest.mark.parametrize("budget", [1, 100, 100_000])
def test_the_validation_loss_is_the_mean_over_tokens_however_they_are_cut(
    tiny_model_dir, pairs_file, tiny_tokenizer, budget
):
    settings = {"val_fraction": 0.4, "tokens_per_batch": budget}
    [found] = trainer("run").validate(sft(tiny_model_dir), responses(pairs_file, **settings), verbose=False)
    batches = list(set_up(pairs_file, tiny_tokenizer, **settings).val_dataloader())
    assert len({len(batch.response_places) for batch in batches}) > 1 or budget == 100_000
    with torch.no_grad():
        expected = plain_loss(AutoModelForCausalLM.from_pretrained(tiny_model_dir), tiny_tokenizer, batches)
    assert found["val/loss"] == pytest.approx(float(expected), rel=1e-5)


def test_without_validation_responses_there_is_no_validation_loss(tiny_model_dir, pairs_file):
    log = LogLoss()
    train(tiny_model_dir, pairs_file, "run", log, epochs=1)
    assert all(math.isfinite(loss) for loss in log.losses)
    with pytest.raises(UserError, match=r"validate: got no validation pairs; set data\.val_fraction"):
        trainer("validate").validate(sft(tiny_model_dir), responses(pairs_file), verbose=False)


def test_the_learning_rate_rises_then_falls_to_nothing_over_the_fit(tiny_model_dir, pairs_file):
    log = LogLearningRate()
    train(tiny_model_dir, pairs_file, "run", log, epochs=4, lr=0.5, warmup_share=0.25)
    total = len(log.rates)
    num_warmup = total // 4
    rising = [0.5 * (i + 1) / (num_warmup + 1) for i in range(num_warmup)]
    falling = [0.5 * (total - i) / (total - num_warmup) for i in range(num_warmup, total)]
    assert total == 4 * 3 and log.rates == pytest.approx(rising + falling)


@pytest.mark.parametrize(("way", "dropout"), [("full", 0.0), ("lora", 0.5)])
def test_a_resumed_run_ends_with_the_same_weights(tiny_model_dir, pairs_file, way, dropout):
    def fresh():
        seed_everything(0, verbose=False)
        module = sft(tiny_model_dir, way)
        module.backbone.lora.dropout = dropout
        return module, responses(pairs_file)

    unbroken, data = fresh()
    trainer("unbroken", max_epochs=2).fit(unbroken, data)
    with pytest.raises(KeyError, match="killed"):
        trainer("run", Breaks(), max_epochs=2).fit(*fresh())
    resumed, data = fresh()
    torch.rand(7)  # the state of the global generator is no part of a step
    trainer("run", max_epochs=2).fit(resumed, data, ckpt_path="run/checkpoints/last.ckpt", weights_only=False)
    assert equal(weights(resumed), weights(unbroken))


def test_a_checkpoint_of_adapters_holds_no_base_and_fits_no_other_settings(tiny_model_dir, pairs_file):
    train(tiny_model_dir, pairs_file, "run", epochs=1, way="lora")
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert state and all("lora" in name for name in state)
    other = loaded(sft(tiny_model_dir, "full"))
    with pytest.raises(UserError, match="saved weights do not fit the model"):
        other.load_state_dict(state)
    one = loaded(sft(tiny_model_dir, "lora"))
    with pytest.raises(UserError, match=r"got 1 missing"):
        one.load_state_dict(dict(list(state.items())[1:]))


def test_a_loss_that_is_not_finite_ends_the_run_before_it_ruins_the_weights(tiny_model_dir, pairs_file):
    class Ruin(Callback):
        def on_fit_start(self, trainer, module):
            with torch.no_grad():
                module.policy.lm.get_input_embeddings().weight.fill_(float("inf"))

    with pytest.raises(UserError, match=r"^train/loss: got nan, gradient norm nan, epoch 0, step 0; lower model.opt"):
        train(tiny_model_dir, pairs_file, "run", Ruin())


def test_wrong_settings_come_all_at_once(tiny_model_dir):
    with pytest.raises(UserError) as error:
        sft(tiny_model_dir, warmup_share=1.0, max_grad_norm=0.0)
    assert [problem.split(":")[0] for problem in error.value.problems] == ["model.warmup_share", "model.max_grad_norm"]
