"""Every form that `export` writes goes back into every command, with the rewards of plain transformers and peft."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ser_lightning.__main__ import main
from ser_lightning.errors import UserError
from ser_lightning.models.adapter_folder import SCALE
from ser_lightning.rl.reward_sources import load_reward
from tests.helpers import slow

PAIRS = [{"prompt": f"What is {n} plus {n}?", "chosen": f"It is {2 * n}.", "rejected": "No" * n} for n in range(1, 9)]


def plain_rewards(folder: Path, kind: type) -> list[float]:
    """Rewards of all chosen responses, each alone, by the libraries that the card names."""
    model, tokenizer = kind.from_pretrained(folder, num_labels=1).eval(), AutoTokenizer.from_pretrained(folder)
    model.config.pad_token_id = tokenizer.pad_token_id
    found = []
    for row in PAIRS:
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}]
        ids = tokenizer.apply_chat_template(turns, return_dict=False, return_tensors="pt")
        with torch.no_grad():
            found.append(float(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits))
    return found


@pytest.fixture
def forms(tiny_fit):
    """A run with adapters, and both forms of its export."""
    run = tiny_fit("--model.backbone.train=lora")
    for form in ("merged", "adapter"):
        assert main(["export", str(run), f"--form={form}", f"--to={form}"]) == 0
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return run


def score(model: str) -> dict[str, list]:
    command = ["score", f"--model={model}", "--data=pairs.jsonl", "--out=out.parquet", "--overwrite", "--device=cpu"]
    assert main(command) == 0
    return pq.read_table("out.parquet").to_pydict()


def test_both_forms_score_as_the_run_and_as_the_libraries(forms):
    run, merged, adapter = (score(name) for name in (str(forms), "merged", "adapter"))
    for side in ("reward_chosen", "reward_rejected"):
        assert adapter[side] == pytest.approx(run[side], abs=1e-6)
        assert adapter[side] == pytest.approx(merged[side], abs=1e-6)
    assert adapter["probability"] == pytest.approx(merged["probability"], abs=1e-3)
    for found, kind in (
        (adapter, AutoPeftModelForSequenceClassification),
        (merged, AutoModelForSequenceClassification),
    ):
        name = "adapter" if found is adapter else "merged"
        assert found["reward_chosen"] == pytest.approx(plain_rewards(Path(name), kind), abs=1e-6)
    assert len(set(adapter["reward_chosen"])) > 4
    scales = [
        (reward.zero, reward.temperature, reward.max_length) for reward in map(load_reward, ("merged", "adapter"))
    ]
    assert scales[0] == pytest.approx(scales[1]) and scales[0][2] == 64


def test_bench_and_compare_take_an_adapter_from_any_folder(forms, capsys, monkeypatch, tmp_path):
    here = Path.cwd()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    data = f"--data={here / 'pairs.jsonl'}"
    assert main(["compare", str(here / "adapter"), str(here / "merged"), data, "--json=c.json"]) == 0
    figures = json.loads(Path("c.json").read_text())
    assert figures["agreement"] == 1.0 and figures["difference"] == 0.0
    assert main(["bench", f"--model={here / 'adapter'}", data, "--device=cpu", "--json=b.json"]) == 0
    assert json.loads(Path("b.json").read_text())["overall"]["score"] == figures["accuracy_a"]


@pytest.mark.slow
def test_an_adapter_on_4_bits_is_read_on_4_bits(tiny_fit):
    run = tiny_fit("--model.backbone.train=lora", "--model.backbone.quantize=nf4")
    assert main(["export", str(run), "--form=adapter", "--to=adapter"]) == 0
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    assert score("adapter")["reward_chosen"] == pytest.approx(score(str(run))["reward_chosen"], abs=1e-6)


@pytest.mark.parametrize(
    ("train", "reading"),
    [
        ("head", "mean"),
        *(pytest.param("lora", reading, marks=pytest.mark.slow) for reading in ("last", "mean")),
    ],
)
def test_a_base_that_was_saved_in_fewer_bits_is_read_in_those_of_the_training(
    tiny_fit, tiny_model_dir, tmp_path, train, reading
):
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    flags = f"--model.backbone.path={base}", f"--model.backbone.train={train}", f"--model.reading={reading}"
    run = tiny_fit(*flags, "--evolution.max_rounds=0")
    assert main(["export", str(run), "--form=adapter", "--to=adapter"]) == 0
    body = load_reward("adapter").reward_model.body
    assert {p.dtype for p in body.parameters()} == {torch.float32}
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    assert score("adapter")["reward_chosen"] == pytest.approx(score(str(run))["reward_chosen"], abs=1e-6)


@pytest.mark.parametrize(
    "flags",
    [
        ("--model.backbone.train=lora",),
        *slow(
            ("--model.backbone.train=lora", "--model.backbone.quantize=nf4", "--model.reading=[mean@2]"),
            ("--model.backbone.train=head", "--model.reading=[mean@1]"),
        ),
    ],
)
def test_a_base_with_one_changed_matrix_is_refused(tiny_fit, tiny_model_dir, tmp_path, flags):
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    run = tiny_fit(f"--model.backbone.path={base}", *flags, "--evolution.max_rounds=0")
    assert main(["export", str(run), "--form=adapter", "--to=adapter"]) == 0
    load_reward("adapter")
    weights = load_file(base / "model.safetensors")
    name = next(key for key in weights if key.endswith("layers.0.mlp.up_proj.weight"))
    save_file({**weights, name: -weights[name]}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"whose base .* is another model .*layers.0.mlp.up_proj.weight is not"
    ) as caught:
        load_reward("adapter")
    assert len(caught.value.problems) == 1


def test_an_adapter_without_base_head_or_scale_is_refused(forms, tiny_model_dir):
    for name in ("no_base", "no_head", "no_scale", "bad_scale", "odd", "no_own_head", "no_layer"):
        shutil.copytree("adapter", name)
    config = json.loads(Path("no_base/adapter_config.json").read_text())
    Path("no_base/adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/nowhere"}))
    weights = load_file("no_head/adapter_model.safetensors")
    save_file({name: t for name, t in weights.items() if ".score." not in name}, "no_head/adapter_model.safetensors")
    Path("no_scale", SCALE).unlink()
    scale = json.loads(Path("bad_scale", SCALE).read_text())
    Path("bad_scale", SCALE).write_text(json.dumps({**scale, "reward_temperature": -1.0}))
    save_file({**weights, "base_model.model.odd.lora_A.weight": torch.ones(2, 2)}, "odd/adapter_model.safetensors")
    shutil.copy("no_head/adapter_model.safetensors", "no_own_head/adapter_model.safetensors")
    plain = {**config, "modules_to_save": None, "task_type": None}
    Path("no_own_head/adapter_config.json").write_text(json.dumps(plain))
    shutil.copytree(tiny_model_dir, "base")
    base = load_file("base/model.safetensors")
    lost = next(name for name in base if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file({name: t for name, t in base.items() if name != lost}, "base/model.safetensors", {"format": "pt"})
    Path("no_layer/adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "base"}))
    for name, line in {
        "no_base": "got an adapter whose base /nowhere cannot be loaded",
        "no_layer": f"whose base base lacks {lost}; give the base that it was trained on",
        "no_head": "got an adapter without the right weights",
        "odd": "got an adapter without the right weights, such as base_model.model.odd.lora_A.weight; give a whole",
        "no_own_head": "got an adapter without the right weights, such as its head; give a whole reward model",
        "no_scale": "without reward_temperature",
        "bad_scale": "the temperature -1.0; need finite numbers",
    }.items():
        with pytest.raises(UserError, match=line) as caught:
            load_reward(name)
        assert len(caught.value.problems) == 1, name
