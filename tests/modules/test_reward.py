import math

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback

from ser_lightning.errors import UserError
from ser_lightning.models.backbone import Backbone
from ser_lightning.modules.sft import SFTModule
from ser_lightning.training.scoring import evaluating
from tests.helpers import data, equal, module, trainer, weights
from tests.pair_batches import PairRow, collate_pairs


class LogLearningRate(Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def train(tiny_model_dir, pairs_file, name, epochs=2, callbacks=(), data_settings=None, lr=3e-3, **kwargs):
    seed_everything(0, verbose=False)
    model, pairs = module(tiny_model_dir, lr, **kwargs), data(pairs_file, **(data_settings or {}))
    trainer(name, *callbacks, max_epochs=epochs).fit(model, pairs)
    return model


def test_the_token_budget_cuts_steps_without_changing_them(tiny_model_dir, pairs_file):
    one = weights(train(tiny_model_dir, pairs_file, "a", data_settings={"tokens_per_batch": 1}))
    other = weights(train(tiny_model_dir, pairs_file, "b", data_settings={"tokens_per_batch": 100_000}))
    start = module(tiny_model_dir)
    seed_everything(0, verbose=False)
    start.configure_model()
    assert all(torch.allclose(one[k], other[k], atol=1e-5) for k in one)
    assert not equal(one, weights(start))


def test_the_model_is_there_once_the_trainer_has_asked_for_it(tiny_model_dir):
    for one in (module(tiny_model_dir), SFTModule(Backbone(str(tiny_model_dir)))):
        with pytest.raises(RuntimeError, match=r"loaded in configure_model\(\), which the trainer calls"):
            _ = one.reward_model if hasattr(type(one), "reward_model") else one.policy


def test_one_step_is_plain_sgd_on_the_mean_loss_of_its_pairs(tiny_model_dir, pairs_file):
    """Oracle: transformers and autograd on padded rows, in the test."""
    seed_everything(0, verbose=False)
    model, pairs = (
        module(tiny_model_dir, max_grad_norm=1e9, center_rewards_coefficient=0.0, warmup_share=0.0),
        data(pairs_file),
    )
    model.optimizer = lambda p: torch.optim.SGD(p, lr=0.5)
    run = trainer("run", max_epochs=1, limit_train_batches=1)
    run.fit(model, pairs)
    seed_everything(0, verbose=False)
    oracle = module(tiny_model_dir)
    oracle.configure_model()
    pairs.trainer = None  # without one, the loader is that of the first epoch
    (step,) = list(pairs.train_dataloader())[:1]
    losses = []
    for batch in step:
        plain = oracle.reward_model.model(
            input_ids=batch.inputs.input_ids, attention_mask=batch.inputs.attention_mask
        ).logits[:, 0]
        for i in range(batch.num_pairs):
            margin = plain[i] - plain[batch.num_pairs + i]
            losses.append(-torch.nn.functional.logsigmoid(margin if batch.target[i] == 1 else -margin))
    torch.stack(losses).mean().backward()
    for name, p in oracle.reward_model.named_parameters():
        if p.grad is not None:
            expected = p.detach() - 0.5 * p.grad
            assert torch.allclose(weights(model)[name], expected, atol=1e-5), name


def test_learning_rate_rises_then_falls_to_nothing_over_the_fit(tiny_model_dir, pairs_file):
    log = LogLearningRate()
    train(tiny_model_dir, pairs_file, "run", epochs=5, callbacks=[log], lr=1.0, warmup_share=0.2)
    total = len(log.rates)
    num_warmup = int(0.2 * total)
    expected = [(i + 1) / (num_warmup + 1) for i in range(num_warmup)]
    expected += [(total - i) / (total - num_warmup) for i in range(num_warmup, total)]
    assert total == 5 * math.ceil(19 / 8) and log.rates == pytest.approx(expected)


def test_without_evolution_the_learning_rate_falls_up_to_the_last_step(tiny_model_dir, pairs_file):
    log = LogLearningRate()
    seed_everything(0, verbose=False)
    model = module(tiny_model_dir, 1.0, warmup_share=0.0)
    trainer("run", log, max_epochs=-1, max_steps=7).fit(model, data(pairs_file))
    assert log.rates == pytest.approx([1 - step / 7 for step in range(7)])


def test_learning_rate_can_stay(tiny_model_dir, pairs_file):
    log = LogLearningRate()
    train(tiny_model_dir, pairs_file, "run", callbacks=[log], lr=0.5, warmup_share=0.0, lr_decay="none")
    assert set(log.rates) == {0.5}


@pytest.mark.parametrize(
    "change",
    [{"center_rewards_coefficient": 1.0}, {"max_grad_norm": 1e-3}],
)
def test_every_knob_of_the_loss_changes_the_weights(tiny_model_dir, pairs_file, change):
    usual = weights(train(tiny_model_dir, pairs_file, "a", epochs=1))
    changed = weights(train(tiny_model_dir, pairs_file, "b", epochs=1, **change))
    assert any(not torch.allclose(usual[k], changed[k], atol=1e-6) for k in usual)


def test_centring_brings_the_mean_reward_to_zero(tiny_model_dir, pairs_file):
    means = []
    for weight in (0.0, 1.0):
        model = train(tiny_model_dir, pairs_file, f"run{weight}", epochs=8, center_rewards_coefficient=weight, lr=1e-2)
        pairs = data(pairs_file)
        pairs.tokenizer = model.tokenizer
        pairs.prepare_data()
        pairs.setup("fit")
        with evaluating(model):
            scores = [model.predict_step(batch) for batch in pairs.scoring_dataloader("seed")]
        means.append(abs(float(torch.cat([s.reward_a + s.reward_b for s in scores]).mean())))
    assert means[1] < 0.1 and means[1] < means[0]


def test_bad_settings_are_named_together(tiny_model_dir):
    with pytest.raises(UserError) as error:
        module(tiny_model_dir, warmup_share=1.0, max_grad_norm=0.0, lr_decay="cosine", center_rewards_coefficient=-0.01)
    names = ("lr_decay", "warmup_share", "max_grad_norm", "center_rewards_coefficient")
    assert [problem.split(":")[0] for problem in error.value.problems] == [f"model.{name}" for name in names]
    with pytest.raises(UserError, match="model.layout: got 'packed'; use auto, shared_prompt, padded"):
        module(tiny_model_dir, layout="packed").configure_model()


def test_a_checkpoint_holds_what_was_trained_and_nothing_else(tiny_model_dir, pairs_file):
    model = train(tiny_model_dir, pairs_file, "run", epochs=1, train="lora")
    model.temperature, model.zero = 1.7, 0.3
    saved: dict = {}
    model.on_save_checkpoint(saved)
    state = model.state_dict()
    assert state and all("lora" in k or "score" in k for k in state)
    assert any("score" in k for k in state) and all(v.numel() for v in state.values())
    assert any((v != 0).any() for k, v in state.items() if "lora_B" in k)
    fresh = module(tiny_model_dir, train="lora")
    fresh.configure_model()
    fresh.load_state_dict(state)
    fresh.on_load_checkpoint(saved)
    assert equal(weights(model), weights(fresh)) and (fresh.temperature, fresh.zero) == (1.7, 0.3)
    with pytest.raises(UserError, match="missing"):
        fresh.load_state_dict({k: v for k, v in state.items() if "score" not in k})


def test_test_figures_are_those_of_a_naive_loop(tiny_model_dir, pairs_file):
    seed_everything(0, verbose=False)
    model, pairs = module(tiny_model_dir), data(pairs_file, tokens_per_scoring_batch=150)
    run = trainer("run", max_epochs=1)
    run.fit(model, pairs)
    (figures,) = run.test(model, pairs, verbose=False)
    right = []
    for pair in pairs.lookup(pairs.pair_ids("test")):
        ids = [
            model.tokenizer.apply_chat_template(
                [*pair.prompt, {"role": "assistant", "content": text}], tokenize=True, return_dict=False
            )
            for text in (pair.response_a, pair.response_b)
        ]
        batch = collate_pairs([PairRow(pair.pair_id, *ids)], 0)
        with evaluating(model):
            label = (model.predict_step(batch).margin > 0).to(torch.int8)
        right.append(pairs.held_out_labels("test").count_right(batch.pair_id, label)[1])
    assert figures["test/pairs"] == len(right) == 16
    assert figures["test/accuracy"] == pytest.approx(sum(right) / 16)
    assert figures["test/accuracy_low"] < figures["test/accuracy"] < figures["test/accuracy_high"] or sum(right) == 16


def test_validation_pairs_come_out_of_the_seed_and_are_reported(tiny_model_dir, pairs_file):
    model, pairs = module(tiny_model_dir), data(pairs_file, val_fraction=0.3)
    run = trainer("run", max_epochs=1)
    run.fit(model, pairs)
    (figures,) = run.validate(model, pairs, verbose=False)
    assert 0 < figures["val/pairs"] < 19
    with pytest.raises(UserError, match="val_fraction"):
        run.validate(model, data(pairs_file), verbose=False)
