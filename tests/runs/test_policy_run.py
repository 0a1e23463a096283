import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from ser_lightning.__main__ import main
from ser_lightning.errors import UserError
from ser_lightning.export.policy import export_policy
from ser_lightning.models.backbone import BUNDLED_MODEL, Backbone, LoraSettings
from ser_lightning.models.policy import load_policy
from ser_lightning.records import Padded
from ser_lightning.runs.policy_run import PolicyStart, model_kind, read_policy_backbone, resolve_start
from tests.helpers import slow
from tests.policy_runs import backbone, loaded, own_logits, plain_logits, sft, sft_flags

IDS = torch.tensor([[5, 9, 17, 33, 8, 44]])


def write_run(run, kind, settings, state=None, **more):
    """A run folder with what `resolve_start` reads of one."""
    (run / "checkpoints").mkdir(parents=True)
    init_args = {"backbone": settings.__dict__ | {"lora": settings.lora.__dict__}}
    config = {"model": {"class_path": f"ser_lightning.some_module.{kind}", "init_args": init_args}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    if state is not None:
        torch.save({"state_dict": state, **more}, run / "checkpoints" / "last.ckpt")
    return run


@pytest.fixture
def a_run(tiny_model_dir, tmp_path):
    """A run that has trained adapters, for whoever asks something of its config alone."""
    return write_run(tmp_path / "run", "SFTModule", backbone(tiny_model_dir, "lora"), {})


def only_problem(settings):
    with pytest.raises(UserError) as error:
        resolve_start(settings)
    [problem] = error.value.problems
    return problem


@pytest.mark.parametrize("path", [BUNDLED_MODEL, "owner/name", "a_folder_of_something_else"])
def test_what_is_no_run_stays_as_it_is(path):
    Path("a_folder_of_something_else").mkdir()
    settings = Backbone(path)
    assert resolve_start(settings) == PolicyStart(settings, None)


@pytest.mark.parametrize("way", [*slow("full"), "lora"])
def test_a_run_goes_on_from_what_another_one_has_learnt(tiny_model_dir, pairs_file, way):
    assert main(["fit", *sft_flags(tiny_model_dir, pairs_file, way), "--run_dir=one"]) == 0
    start = resolve_start(backbone("one", way))
    assert start.backbone == backbone(tiny_model_dir, way)
    one = own_logits(loaded(sft("one", way)), IDS)
    assert not torch.allclose(one, plain_logits(tiny_model_dir, IDS), atol=1e-3)
    state = torch.load("one/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    trained = loaded(sft(tiny_model_dir, way))
    trained.load_state_dict(state)
    assert torch.equal(own_logits(trained, IDS), one)

    assert main(["fit", *sft_flags("one", pairs_file, way), "--run_dir=two"]) == 0
    two = resolve_start(backbone("two", way))
    assert two.backbone == backbone(tiny_model_dir, way)  # through both runs to the pretrained model
    last = torch.load("two/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(two.weights[name.removeprefix("_policy.")], value) for name, value in last.items())
    assert not torch.allclose(own_logits(loaded(sft("two", way)), IDS), one, atol=1e-3)


@pytest.mark.parametrize("way", ["full", "lora"])
def test_of_a_run_of_ppo_the_policy_is_taken_and_the_critic_is_not(tiny_model_dir, tmp_path, way):
    settings = backbone(tiny_model_dir, way)
    policy = load_policy(settings, has_reference=True, has_critic=True)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.05 * p.requires_grad
    state = {f"_policy.{name}": value for name, value in policy.trainable_state().items()}
    run = write_run(tmp_path / "run", "PPOModule", settings, state)
    start = resolve_start(replace(settings, path=str(run)))
    own = load_policy(start.backbone, start=start.weights)  # takes exactly what a policy without a critic has
    assert own.trainable_state().keys() == start.weights.keys() < policy.trainable_state().keys()
    for policy_ in (own, policy):
        policy_.eval()
    with torch.no_grad():
        found, expected = (p.hidden("policy", Padded(IDS, torch.ones_like(IDS))) for p in (own, policy))
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_run_whose_base_was_changed_since_gives_no_policy(tiny_model_dir, pairs_file):
    """Not to train on, not to ask, not to export: its adapters were made for other weights."""
    shutil.copytree(tiny_model_dir, "base")
    assert main(["fit", *sft_flags("base", pairs_file, "lora"), "--run_dir=run"]) == 0
    loaded(sft("run", "lora"))
    other = AutoModelForCausalLM.from_pretrained("base")
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight.neg_()
    other.save_pretrained("base")
    problem = r"^run: was trained on another base model \(model.layers.1.mlp.down_proj.weight is not what it was\); "
    with pytest.raises(UserError, match=problem):
        loaded(sft("run", "lora"))
    with pytest.raises(UserError, match=problem):
        export_policy(Path("run"), Path("out"))
    assert not Path("out").exists()


def test_a_run_whose_template_was_changed_since_gives_no_policy(tiny_model_dir, tmp_path):
    settings = backbone(tiny_model_dir, "full")
    identity = {"base": "", "template": "0123456789abcdef", "matrices": {}, "is_4bit": False}
    state = {f"_policy.{name}": value for name, value in load_policy(settings).trainable_state().items()}
    run = write_run(tmp_path / "run", "SFTModule", settings, state, identity=identity)
    with pytest.raises(UserError, match="was trained through another chat template"):
        loaded(sft(run))
    module = sft(run)
    module.backbone.template = "paper"  # another one is wanted
    loaded(module)


def test_a_damaged_identity_is_one_line(tiny_model_dir, tmp_path):
    run = write_run(tmp_path / "run", "SFTModule", backbone(tiny_model_dir, "lora"), {}, identity={"base": 1})
    assert only_problem(backbone(run, "lora")) == (
        f"run: cannot read {run}/checkpoints/last.ckpt (identity has no template); is it damaged?"
    )


def test_a_template_is_handed_on_unless_another_is_named(tiny_model_dir, tmp_path):
    run = write_run(tmp_path / "run", "SFTModule", backbone(tiny_model_dir, "lora", template="paper"), {})
    assert resolve_start(backbone(run, "lora")).backbone.template == "paper"
    Path("mine.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert resolve_start(backbone(run, "lora", template="mine.jinja")).backbone.template == "mine.jinja"


def test_what_changes_no_weight_may_differ(a_run):
    settings = replace(backbone(a_run, "lora", dtype="bfloat16"), gradient_checkpointing=True)
    settings.lora.dropout = 0.5
    start = resolve_start(settings)
    assert (start.backbone.dtype, start.backbone.gradient_checkpointing) == ("bfloat16", True)
    assert start.backbone.lora.dropout == 0.5


def test_the_settings_of_a_run_are_read_back(tiny_model_dir, tmp_path):
    settings = Backbone(str(tiny_model_dir), "lora", LoraSettings(3, 5, 0.25, ["q_proj"]), template="paper")
    assert read_policy_backbone(write_run(tmp_path / "run", "PPOModule", settings)) == settings
    assert model_kind(tmp_path / "run") == "PPOModule"
    assert model_kind(tmp_path) == ""


def test_a_run_of_another_module_is_refused(tiny_model_dir, tmp_path):
    run = write_run(tmp_path / "run", "RewardModule", backbone(tiny_model_dir))
    assert only_problem(backbone(run)) == (
        f"backbone.path: got {run}, a run of RewardModule; give a run of sft.yaml or ppo.yaml, or a model"
    )
    run.joinpath("config.yaml").write_text("trainer: {}")
    assert "a run of no model" in only_problem(backbone(run))


def test_a_run_without_a_checkpoint_is_refused(tiny_model_dir, tmp_path):
    run = write_run(tmp_path / "run", "SFTModule", backbone(tiny_model_dir))
    assert only_problem(backbone(run)) == (
        f"backbone.path: got {run}, which has no checkpoints/last.ckpt; let its fit finish an epoch first"
    )


def test_a_damaged_checkpoint_names_the_one_before(a_run):
    folder = a_run / "checkpoints"
    whole = (folder / "last.ckpt").read_bytes()
    (folder / "last.ckpt").write_bytes(whole[:-100])
    problem = f"backbone.path: got {a_run}, whose checkpoints/last.ckpt is damaged (cut off or not a checkpoint); "
    assert only_problem(backbone(a_run, "lora")) == problem + "train it again"
    (folder / "previous.ckpt").write_bytes(whole)
    assert only_problem(backbone(a_run, "lora")) == problem + f"put {folder / 'previous.ckpt'} in its place"


def test_another_way_of_training_is_refused(a_run):
    assert only_problem(backbone(a_run, "full")) == (
        f"backbone.train: got full for {a_run}, which was trained with lora; use that, or `export {a_run}` and give "
        "backbone.path the folder that it writes"
    )


@pytest.mark.parametrize(
    ("name", "value", "was"), [("r", 4, 8), ("alpha", 16, 32), ("target_modules", ["q_proj"], "all-linear")]
)
def test_other_adapters_are_refused(a_run, name, value, was):
    settings = backbone(a_run, "lora")
    setattr(settings.lora, name, value)
    assert only_problem(settings) == (
        f"backbone.lora.{name}: got {value} for {a_run}, which was trained with {was}; use that, or `export {a_run}` "
        "and start from the folder that it writes"
    )


def test_adapters_of_a_full_run_say_nothing(tiny_model_dir, tmp_path):
    run = write_run(tmp_path / "run", "SFTModule", backbone(tiny_model_dir, "full"), {})
    settings = backbone(run, "full")
    settings.lora.r = 99
    assert resolve_start(settings).weights == {}
