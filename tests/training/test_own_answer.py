"""The two rows of the output matrix that a model's own answer is made of, against those of the loaded model."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, ViTConfig

from ser_lightning.errors import UserError
from ser_lightning.models.backbone import Backbone, load_tokenizer
from ser_lightning.training.own_answer import answer_direction


@pytest.fixture(params=["tied", "untied", "sharded", "tied by the config alone"])
def language_model(tiny_model_dir, tmp_path, request):
    """The tiny model with an output matrix that is its embeddings, or one of its own, in one file or several."""
    folder = tmp_path / "lm"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    torch.nn.init.normal_(model.lm_head.weight)
    if request.param == "tied":
        model.lm_head.weight = model.model.embed_tokens.weight
    model.config.tie_word_embeddings = request.param.startswith("tied")
    model.save_pretrained(folder, max_shard_size="20KB" if request.param == "sharded" else "1GB")
    if request.param == "sharded":
        assert folder.joinpath("model.safetensors.index.json").is_file()
    else:
        assert ("lm_head.weight" in load_file(folder / "model.safetensors")) == (request.param != "tied")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    return folder


def expected(folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    yes, no = (tokenizer.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No"))
    return (model.get_output_embeddings().weight[yes] - model.get_output_embeddings().weight[no]).detach()


@pytest.mark.parametrize("settings", [{}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "quantize": "nf4"}])
def test_rows_are_read_out_of_the_file_without_loading_the_model(language_model, monkeypatch, settings):
    wanted = expected(language_model)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    backbone = Backbone(str(language_model), **settings)
    found = answer_direction(backbone, load_tokenizer(backbone), may_load=False)
    assert found.dtype == torch.float32 and torch.equal(found, wanted)


def test_a_model_in_another_format_is_loaded_where_that_is_allowed(language_model):
    wanted = expected(language_model)
    model = AutoModelForCausalLM.from_pretrained(language_model)
    for file in language_model.glob("*.safetensors*"):
        file.unlink()
    torch.save(model.state_dict(), language_model / "pytorch_model.bin")
    backbone = Backbone(str(language_model))
    tokenizer = load_tokenizer(backbone)
    assert torch.equal(answer_direction(backbone, tokenizer), wanted)
    with pytest.raises(UserError, match="got no safetensors file with an output matrix"):
        answer_direction(backbone, tokenizer, may_load=False)


def test_a_gguf_file_and_what_is_no_language_model_have_no_rows(language_model):
    tokenizer = load_tokenizer(Backbone(str(language_model)))
    ViTConfig().save_pretrained(language_model)
    for settings in ({}, {"gguf_file": "x.gguf"}):
        with pytest.raises(UserError, match="got no safetensors file with an output matrix; save the model as one"):
            answer_direction(Backbone(str(language_model), **settings), tokenizer, may_load=False)


def test_a_file_without_the_matrix_has_no_rows(language_model):
    index = language_model / "model.safetensors.index.json"
    if index.is_file():
        index.write_text(json.dumps({"weight_map": {}}))
    else:
        save_file({"other": torch.zeros(1)}, language_model / "model.safetensors")
    backbone = Backbone(str(language_model))
    with pytest.raises(UserError, match="got no safetensors file with an output matrix"):
        answer_direction(backbone, load_tokenizer(backbone), may_load=False)


def test_words_that_begin_alike_are_no_answer(language_model, monkeypatch):
    backbone = Backbone(str(language_model))
    monkeypatch.setattr("ser_lightning.training.own_answer.WORDS", ("Yes", "Yea"))
    with pytest.raises(UserError, match="got a tokenizer that begins Yes and Yea alike; take another model"):
        answer_direction(backbone, load_tokenizer(backbone))
