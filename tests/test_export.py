from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ser_lightning.__main__ import main
from ser_lightning.backbone import Backbone
from ser_lightning.errors import UserError
from ser_lightning.export import delivered_round, export
from ser_lightning.records import Padded
from ser_lightning.scorer import load_scorer
from ser_lightning.scoring import evaluating

TURNS = [
    [{"role": "user", "content": "What is 2 plus 2?"}, {"role": "assistant", "content": answer}]
    for answer in ("It is 4.", "It is 5, I think.", "No.")
]


@pytest.mark.parametrize("train", ["full", "lora"])
def test_plain_transformers_gives_the_delivered_models_scores(tiny_run, tiny_model_dir, train):
    main(["fit", *tiny_run, f"--model.backbone.train={train}", "--run_dir=run"])
    largest = export(Path("run"), Path("out"))
    model = AutoModelForSequenceClassification.from_pretrained("out")
    tokenizer = AutoTokenizer.from_pretrained("out")
    ids = [tokenizer.apply_chat_template(t, tokenize=True, return_dict=False) for t in TURNS]
    with torch.no_grad():
        exported = torch.cat([model.eval()(torch.tensor([row])).logits[0] for row in ids])
    saved = torch.load(f"run/rounds/{delivered_round(Path('run'))}/model.pt", weights_only=True)
    scorer = load_scorer(Backbone(str(tiny_model_dir), train=train))
    scorer.load_trainable_state(saved["weights"])
    with evaluating(scorer):
        trained = torch.cat([scorer(Padded(torch.tensor([row]), torch.ones(1, len(row)).long())) for row in ids])
    assert torch.allclose(exported, trained, atol=1e-4) and largest < 1e-3
    assert exported.unique().numel() == 3
    assert model.config.reward_temperature == pytest.approx(saved["temperature"])
    assert model.config.reward_zero == pytest.approx(saved["zero"])
    assert model.config.num_labels == 1 and tokenizer.model_max_length == 64
    assert not any("lora" in name for name in model.state_dict())


def test_the_command_writes_into_the_run_and_never_twice(tiny_run, capsys):
    main(["fit", *tiny_run, "--run_dir=run"])
    main(["export", "run"])
    assert "Exported to run/export" in capsys.readouterr().out
    assert Path("run/export/model.safetensors").is_file()
    with pytest.raises(UserError, match="exists already"):
        export(Path("run"), Path("run/export"))


def test_a_wrong_command_line_is_one_line(capsys):
    assert main(["export"]) == 2
    assert main(["export", "run", "--ou", "x"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_nothing_to_export_is_one_line():
    with pytest.raises(UserError, match="has no config.yaml"):
        export(Path("nowhere"), Path("out"))
    Path("empty").mkdir()
    with pytest.raises(UserError, match="has no rounds.csv"):
        delivered_round(Path("empty"))
