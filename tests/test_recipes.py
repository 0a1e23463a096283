"""`docs/serve.md` and `docs/recipes/` keep their word: their code runs as it is printed, against a running server."""

import re
import runpy
import shutil
import threading
import time
from pathlib import Path

import datasets
import pytest
import torch
import uvicorn
from transformers import AutoTokenizer

from ser_lightning import Scorer, reward_function
from ser_lightning.serving.app import LOCAL_HOSTS, RewardService, make_app
from tests.helpers import plain_reward, save_reward_model

DOCS = Path(__file__).parent.parent / "docs"
NOT_RUN = ("openrlhf", "verl", "vllm")
URL = "http://127.0.0.1:8000"


@pytest.fixture
def here(tmp_path, tiny_model_dir, tiny_tokenizer):
    """A folder with the models that the pages name; the run is a model as `export` writes it, at both places."""
    shutil.copytree(tiny_model_dir, tmp_path / "models" / "my-policy")
    for name in ("mine", "mine/export"):
        save_reward_model(tmp_path / "runs" / name, tiny_tokenizer, 128, reward_temperature=2.0, reward_zero=0.5)
    return tmp_path


@pytest.fixture
def url(here):
    """Of a server in a thread."""
    policy = AutoTokenizer.from_pretrained("models/my-policy")
    app = make_app(RewardService(Scorer.load("runs/mine", device="cpu"), policy), hosts=LOCAL_HOSTS)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def run(page, url):
    """The variables that all the Python of a page ends with, as one script."""
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL))
    assert URL in code
    Path("script.py").write_text(code.replace(URL, url), encoding="utf-8")
    return runpy.run_path("script.py", run_name="__main__")


def plain(prompts, responses):
    return [plain_reward(Path("runs/mine"), prompt, text)[0] for prompt, text in zip(prompts, responses, strict=True)]


def test_serve(url):
    left = run("serve.md", url)
    assert left["rewards"] == pytest.approx(plain(left["body"]["prompts"], left["body"]["responses"]), abs=1e-5)


def test_best_of_n(url):
    left = run("recipes/best_of_n.md", url)
    rewards = plain(["Is tea a fruit?"] * 3, left["responses"])
    assert left["best"] == left["best_served"] == left["responses"][rewards.index(max(rewards))]


def test_openrlhf(url):
    left = run("recipes/openrlhf.md", url)
    assert left["reward"] == pytest.approx(plain(["Is tea a fruit?"], ["No."])[0], abs=1e-5)


def test_verl(url):
    left = run("recipes/verl.md", url)
    assert left["reward"] == pytest.approx(plain(["Is tea a fruit?"], ["No."])[0], abs=1e-5)


def test_vllm(url):
    left = run("recipes/vllm.md", url)
    assert left["rewards"] == pytest.approx(plain(["Is tea a fruit?"] * 3, left["answers"]), abs=1e-5)


def test_trl_trains_with_the_function_and_all_ways_agree(url, capsys):
    left = run("recipes/trl.md", url)
    differences = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()[-3:]]
    assert max(differences) < 1e-4
    expected = plain(
        [turns[0]["content"] for turns in left["prompts"]], [turns[0]["content"] for turns in left["completions"]]
    )
    assert left["expected"].tolist() == pytest.approx(expected, abs=1e-4)
    [logged] = [row for row in left["trainer"].state.log_history if "rewards/reward/mean" in row]
    assert logged["rewards/reward/mean"] == logged["reward"]


def test_rloo_of_trl_trains_on_the_rewards_of_plain_transformers(here):
    import trl

    seen = []
    reward = reward_function(Scorer.load("runs/mine", device="cpu"))

    def noting(prompts, completions, **columns):
        rewards = reward(prompts, completions, **columns)
        seen.extend(zip(prompts, completions, rewards, strict=True))
        return rewards

    settings = {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8, "max_steps": 1}
    prompts = [{"prompt": [{"role": "user", "content": text}]} for text in ("Hi", "Why?", "No", "So")]
    trainer = trl.RLOOTrainer(
        "models/my-policy",
        reward_funcs=noting,
        args=trl.RLOOConfig(output_dir="rloo", use_cpu=True, bf16=False, report_to=[], **settings),
        train_dataset=datasets.Dataset.from_list(prompts),
    )
    before = [weight.clone() for weight in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(one, other) for one, other in zip(before, trainer.model.parameters(), strict=True))
    assert len(seen) == 4
    expected = plain([prompt for prompt, *_ in seen], [completion[0]["content"] for _, completion, _ in seen])
    assert [reward for *_, reward in seen] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("page", sorted((DOCS / "recipes").glob("*.md")), ids=lambda page: page.stem)
def test_a_recipe_says_at_its_top_whether_it_was_run(page):
    [status] = re.findall(r"^# .*\n\n\*\*(.*?)\*\*", page.read_text())
    assert ("not run here" in status) == (page.stem in NOT_RUN)
