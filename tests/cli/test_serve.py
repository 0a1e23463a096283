"""`serve` as its users run it: a process, and clients over a real socket."""

import json
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import requests

from ser_lightning import Scorer
from ser_lightning.cli.serve import _is_local
from tests.command_process import CommandProcess
from tests.helpers import problems_of, save_reward_model

PROMPTS = [f"What is {n} plus {n}?" for n in range(40)]
RESPONSES = [f"It is {2 * n}{'.' * (n % 5)}" for n in range(40)]


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    save_reward_model(folder, tiny_tokenizer, 60)
    return folder


@contextmanager
def serving(*argv):
    """A server on a free port; its address, and the process."""
    process = CommandProcess("serve", *map(str, argv), "--port=0", "--device=cpu")
    try:
        lines = iter(process.stdout.readline, "")
        line = next((one for one in lines if one.startswith("Serving ")), None)
        assert line is not None, process.communicate()[1]
        yield line.split(" at ")[1].partition(";")[0], process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow  # a server of its own and many clients; test_batching.py has the fast ones
def test_many_clients_at_once_get_the_rewards_of_the_scorer_in_order(model):
    expected = Scorer.load(model, device="cpu").score(PROMPTS, RESPONSES).tolist()
    with serving(model) as (url, process):
        assert requests.get(f"{url}/health", timeout=60).json() == {"status": "ok"}

        def ask(first):
            body = {"prompts": PROMPTS[first : first + 4], "responses": RESPONSES[first : first + 4]}
            return requests.post(f"{url}/score", json=body, timeout=60).json()["rewards"]

        with ThreadPoolExecutor(10) as pool:
            found = [reward for rewards in pool.map(ask, range(0, 40, 4)) for reward in rewards]
        assert found == pytest.approx(expected, abs=1e-5)
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate()
    assert process.returncode == 0 and said.splitlines()[-1] == "Ended" and "Traceback" not in errors


def test_limits_are_those_of_the_flags(model):
    with serving(model, "--max_rows=2", "--max_body_mib=1", "--host=127.0.0.2") as (url, _):
        assert url.startswith("http://127.0.0.2:")
        body = {"prompts": ["Hi"] * 3, "responses": ["a"] * 3}
        answer = requests.post(f"{url}/score", json=body, timeout=60)
        assert answer.json() == {"error": "request: got 3 responses; send at most 2 at a time"}
        answer = requests.post(f"{url}/score", json={**body, "prompts": ["x" * 2**20]}, timeout=60)
        assert answer.status_code == 413
        assert answer.json() == {"error": "body: got more than 1048576 bytes; send fewer rows at a time"}
        evil = requests.get(f"{url}/", headers={"Host": "evil.example"}, timeout=60)
        assert evil.status_code == 421


def test_an_address_that_others_reach_warns_and_takes_every_name(model):
    with serving(model, "--host=0.0.0.0") as (url, process):
        port = url.rpartition(":")[2]
        answer = requests.get(f"http://127.0.0.1:{port}/", headers={"Host": "rewards.lan"}, timeout=60)
        assert answer.json()["model"].endswith("/model")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert "warning: everybody who reaches 0.0.0.0:" in errors and process.returncode == 0


@pytest.mark.parametrize(
    ("host", "local"), [("localhost", True), ("127.0.0.2", True), ("::1", True), ("0.0.0.0", False), ("my.lan", False)]
)
def test_only_this_machine_reaches_a_loopback_address(host, local):
    assert _is_local(host) == local


def test_the_template_of_the_policy_reads_what_openrlhf_sends(model, tiny_tokenizer, tmp_path):
    tokenizer_dir = tmp_path / "policy"
    tiny_tokenizer.save_pretrained(tokenizer_dir)
    (tokenizer_dir / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[end]{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    prompt = "[user]Why?[end][assistant]"
    expected = Scorer.load(model, device="cpu").score(["Why?"], ["So."]).tolist()
    with serving(model, f"--policy={tokenizer_dir}") as (url, _):
        body = {"query": [prompt + "So.[end]<eos>"], "prompts": [prompt], "labels": [""]}
        found = requests.post(f"{url}/get_reward", json=body, timeout=60).json()
    assert found["rewards"] == pytest.approx(expected, abs=1e-5)


def test_what_cannot_work_is_said_before_a_model_is_loaded(model, capsys, tiny_tokenizer, tmp_path):
    bad = ["--max_rows=0", "--max_body_mib=0", "--max_wait_ms=-1", "--port=70000", "--policy=nowhere"]
    assert problems_of(capsys, "serve", "nowhere", *bad) == [
        "--max_rows: got 0; use 1 to 65536, the most that may wait",
        "--max_body_mib: got 0; use at least 1",
        "--max_wait_ms: got -1.0; use 0 to 10000",
        "--port: got 70000; use 0, which takes a free one, to 65535",
        "--policy: got nowhere, which is no folder; give the folder of a model or tokenizer",
    ]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        [line] = problems_of(capsys, "serve", model, f"--port={port}")
        assert line.startswith(f"--port: got {port} on 127.0.0.1, which cannot be taken (Address already in use); use")
    [line] = problems_of(capsys, "serve", tmp_path / "gone", "--port=0")
    assert line.startswith(f"model: got {tmp_path / 'gone'}, which is no folder")
    [line] = problems_of(capsys, "serve", model, "--host=nowhere.invalid", "--port=0")
    assert line.startswith("--host: got nowhere.invalid")
    [line] = problems_of(capsys, "serve", model, "--port=0", f"--policy={tmp_path}")
    assert line == f"--policy: got {tmp_path}, which has no tokenizer; give the folder of the policy"
    tiny_tokenizer.save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    [line] = problems_of(capsys, "serve", model, "--port=0", f"--policy={tmp_path / 'bare'}")
    assert line.endswith("whose tokenizer has no chat template; leave the flag out")


def test_without_the_extra_one_line_says_how_to_get_it(model, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert problems_of(capsys, "serve", model, "--port=0") == [
        "serve: got no package uvicorn; install it with pip install 'ser-lightning[serve]'"
    ]


def test_a_run_that_asks_a_question_is_served_as_its_export_is(tiny_fit, tiny_model_dir):
    """Texts that the template of the export wrote, question and all, and plain rows get the same rewards."""
    from fastapi.testclient import TestClient
    from transformers import AutoTokenizer

    from ser_lightning.__main__ import main
    from ser_lightning.serving.app import RewardService, make_app

    tiny_fit("--model.reading=judge")
    assert main(["export", "run"]) == 0
    expected = Scorer.load("run", device="cpu").score(PROMPTS[:3], RESPONSES[:3]).tolist()
    with TestClient(make_app(RewardService(Scorer.load("run/export", device="cpu")))) as client:
        found = client.post("/score", json={"prompts": PROMPTS[:3], "responses": RESPONSES[:3]}).json()["rewards"]
        assert found == pytest.approx(expected, abs=1e-4)
        tokenizer = AutoTokenizer.from_pretrained("run/export")
        chats = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            for prompt, response in zip(PROMPTS[:3], RESPONSES[:3], strict=True)
        ]
        texts = tokenizer.apply_chat_template(chats, tokenize=False)
        assert all("user" in text.rpartition("It is")[2] for text in texts)  # the question
        data = json.loads(client.post("/classify", json={"input": texts}).content)["data"]
        assert [one["probs"][0] for one in data] == pytest.approx(expected, abs=1e-4)
