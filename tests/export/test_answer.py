"""A language model's own answer, against the log-odds that plain transformers gives."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
)

from ser_lightning import Scorer
from ser_lightning.__main__ import main
from ser_lightning.export.answer import export_answer
from ser_lightning.models.readings import QUESTION
from tests.export.test_reading_folder import TURNS
from tests.helpers import log_odds, problems_of


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def language_model(tiny_model_dir, tmp_path, request):
    """The tiny model with an output matrix that is its embeddings, or one of its own."""
    folder = tmp_path / "lm"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    torch.nn.init.normal_(model.lm_head.weight)
    if request.param:
        model.lm_head.weight, model.config.tie_word_embeddings = model.model.embed_tokens.weight, True
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
    return folder


def test_the_folder_gives_the_log_odds_of_the_language_model(language_model):
    question = "Is that right? Yes or No."
    assert export_answer(str(language_model), Path("answer"), question=question).is_exact
    expected = [log_odds(language_model, turns, question) for turns in TURNS]
    model = AutoModelForSequenceClassification.from_pretrained("answer").eval()
    tokenizer = AutoTokenizer.from_pretrained("answer")
    for turns, wanted in zip(TURNS, expected, strict=True):
        inputs = tokenizer.apply_chat_template(turns, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            assert float(model(**inputs).logits[0, 0]) == pytest.approx(wanted, abs=1e-4)
    scorer = Scorer.load("answer")
    got = scorer.score([turns[0]["content"] for turns in TURNS], [turns[1]["content"] for turns in TURNS])
    assert got.tolist() == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_fewer_bits_answer_alike(tiny_model_dir, dtype):
    assert export_answer(str(tiny_model_dir), Path("half"), dtype).num_reordered < 8
    model = AutoModelForSequenceClassification.from_pretrained("half", dtype="auto")
    assert model.dtype == getattr(torch, dtype)


def test_the_command_makes_a_model_that_others_compare(tiny_fit, tiny_model_dir, pairs_file, capsys):
    run = tiny_fit("--evolution.max_rounds=0")
    main(["export", "--answer", str(tiny_model_dir), "--to", "answer"])
    assert "compare answer RUN --data FILE" in capsys.readouterr().out
    card = Path("answer/README.md").read_text()
    assert "Yes against No" in card and QUESTION in card and str(tiny_model_dir.parent) not in card
    main(["compare", "answer", str(run), "--data", str(pairs_file)])
    assert "answer" in capsys.readouterr().out
    assert problems_of(capsys, "export", "--answer", str(tiny_model_dir), "--to", "answer") == [
        "--to: answer exists already; name another folder or remove it"
    ]


def test_what_cannot_be_asked_is_one_line_each(tiny_model_dir, tiny_tokenizer, tmp_path, capsys):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = BertConfig(vocab_size=len(tiny_tokenizer), **sizes)
    for folder in (BertForSequenceClassification(encoder), tiny_tokenizer):
        folder.save_pretrained(tmp_path / "bert")
    asked = "export", "--answer"
    found = problems_of(capsys, *asked, str(tiny_model_dir), "--form", "adapter")
    assert [line.partition(":")[0] for line in found] == ["--to", "--form"]
    [line] = problems_of(capsys, *asked, str(tmp_path / "bert"), "--to", "out")
    assert "language model" in line
    [line] = problems_of(capsys, *asked, str(tiny_model_dir), "--ckpt_path", "x.ckpt", "--to", "out")
    assert line.startswith("export: got --ckpt_path and --answer; use ")
    assert not Path("out").exists()
