"""The HTTP interface, against plain transformers on one unpadded sequence at a time, in the shapes of its clients."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch
from fastapi.testclient import TestClient
from transformers import AutoTokenizer

from ser_lightning import Scorer
from ser_lightning.serving.app import LOCAL_HOSTS, RewardService, make_app
from ser_lightning.serving.batching import BatchingScorer, Busy
from tests.helpers import plain_reward, save_reward_model

ZERO, TEMPERATURE, MAX_LENGTH = 0.01, 0.05, 60
PROMPTS = [f"What is {n} plus {n}?" for n in range(6)]
RESPONSES = [f"It is {2 * n}." for n in range(6)]
DIALOGUE = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why?"},
]


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    save_reward_model(folder, tiny_tokenizer, MAX_LENGTH, reward_zero=ZERO, reward_temperature=TEMPERATURE)
    return folder


@pytest.fixture(scope="module")
def service(model):
    return RewardService(Scorer.load(model, device="cpu"), max_rows=8)


@pytest.fixture(scope="module")
def client(service):
    app = make_app(service, max_body_bytes=20_000, hosts=LOCAL_HOSTS)
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


def post(client, path, **body):
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client, path, status=422, **body):
    """The one line of an error."""
    answer = client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return answer.json()["error"]


def plain(model, prompts, responses):
    return [plain_reward(model, prompt, text)[0] for prompt, text in zip(prompts, responses, strict=True)]


def rendered(model, prompt, response):
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    tokenizer = AutoTokenizer.from_pretrained(model)
    return tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": response}], tokenize=False)


def test_prompts_and_responses_get_the_rewards_of_plain_transformers_in_their_order(client, model):
    found = post(client, "/score", prompts=[*PROMPTS, DIALOGUE], responses=[*RESPONSES, "So."])
    assert found["rewards"] == pytest.approx(plain(model, [*PROMPTS, DIALOGUE], [*RESPONSES, "So."]), abs=1e-5)
    assert found["cut"] == []


def test_conversations_are_scored_as_their_prompts_and_responses(client, model):
    conversations = [[*DIALOGUE, {"role": "assistant", "content": text}] for text in ("So.", "No.")]
    found = post(client, "/score", conversations=conversations)
    assert found["rewards"] == pytest.approx(plain(model, [DIALOGUE] * 2, ["So.", "No."]), abs=1e-5)


def test_a_response_that_is_too_long_is_judged_by_its_front_and_named(client, model):
    with pytest.warns(UserWarning, match="judges them by what comes first"):
        found = post(client, "/score", prompts=["Why?"] * 3, responses=["Yes.", "x" * 500, "No."])
    assert found["cut"] == [1]
    scorer = Scorer.load(model, device="cpu")
    with pytest.warns(UserWarning, match="judges them by what comes first"):
        expected = scorer.score(["Why?"] * 3, ["Yes.", "x" * 500, "No."], cut_long=True)
    assert found["rewards"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_nothing_gets_no_rewards(client):
    assert post(client, "/score", prompts=[], responses=[]) == {"rewards": [], "cut": []}
    assert post(client, "/rerank", query="Hi", texts=[]) == []


def test_the_root_names_the_model_and_its_scale(client):
    found = client.get("/").json()
    assert found.pop("ser_lightning")
    assert found.pop("model").endswith("/model")
    assert found == {
        **{"zero": ZERO, "temperature": TEMPERATURE, "is_calibrated": True},
        **{"max_length": MAX_LENGTH, "max_rows": 8},
    }
    assert client.get("/health").json() == {"status": "ok"}


# OpenRLHF 0.11: openrlhf/utils/agent.py posts one query with its prompt and label, and reads rewards, scores and
# extra_logs; `rewards` and `scores` become a tensor of one number.
def test_openrlhf_gets_rewards_for_texts_that_the_policy_wrote(client, model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    chat = [{"role": "user", "content": PROMPTS[1]}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    sampled = tokenizer(prompt, add_special_tokens=False).input_ids + tokenizer("It is 2.<eos>").input_ids
    query = tokenizer.decode(sampled, skip_special_tokens=False)
    found = post(client, "/get_reward", query=[query], prompts=[prompt], labels=["2"])
    assert set(found) == {"rewards", "scores", "extra_logs"} and found["extra_logs"] == {}
    assert torch.tensor([found["rewards"]]).shape == (1, 1) and found["scores"] == found["rewards"]
    assert found["rewards"] == pytest.approx(plain(model, [PROMPTS[1]], ["It is 2."]), abs=1e-5)


def test_openrlhf_without_a_chat_template_sends_plain_prompts(client, model):
    queries = [prompt + text for prompt, text in zip(PROMPTS, RESPONSES, strict=True)]
    found = post(client, "/get_reward", query=queries, prompts=PROMPTS, labels=[""] * 6)
    assert found["rewards"] == pytest.approx(plain(model, PROMPTS, RESPONSES), abs=1e-5)


def test_a_policy_with_another_template_is_read_by_that(model, tiny_tokenizer):
    chatml = AutoTokenizer.from_pretrained(model)
    chatml.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    prompt = chatml.apply_chat_template(DIALOGUE, tokenize=False, add_generation_prompt=True)
    body = {"query": [prompt + "So.<|im_end|>"], "prompts": [prompt]}
    with TestClient(make_app(RewardService(Scorer.load(model, device="cpu"), chatml))) as client:
        assert post(client, "/get_reward", **body)["rewards"] == pytest.approx(
            plain(model, [DIALOGUE], ["So."]), abs=1e-5
        )
    with TestClient(make_app(RewardService(Scorer.load(model, device="cpu")))) as client:
        assert refused(client, "/get_reward", **body) == (
            "prompts[0]: got a prompt with <|im_start|>, which another chat template wrote; start the server with "
            "--policy and the folder of the policy, whose template it is"
        )


def test_a_template_that_cannot_be_read_back_matters_to_rendered_texts_alone(model):
    scorer = Scorer.load(model, device="cpu")
    scorer.reward.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    with TestClient(make_app(RewardService(scorer))) as client:
        assert len(post(client, "/score", prompts=["Hi"], responses=["a"])["rewards"]) == 1
        for line in (
            refused(client, "/classify", input=["Hi\na\n"]),
            refused(client, "/get_reward", query=["Hia"], prompts=["Hi"]),
        ):
            assert "writes nothing fixed between turns" in line
            assert line.endswith("send prompts and responses to /score")


# vLLM's request and response: vllm/entrypoints/pooling/classify/protocol.py. verl 0.9 posts one text with
# use_activation false and without BOS, and reads data[-1].probs[-1] (verl/experimental/reward_loop/reward_loop.py).
def test_classify_is_what_vllm_answers_and_verl_reads(client, model):
    text = rendered(model, DIALOGUE, "So.")
    assert text.startswith("<bos>")
    body = {"model": "whatever", "input": text.removeprefix("<bos>"), "use_activation": False}
    found = post(client, "/classify", **body)
    [expected] = plain(model, [DIALOGUE], ["So."])
    assert found["data"][-1]["probs"][-1] == pytest.approx(expected, abs=1e-5)
    assert set(found) == {"id", "object", "created", "model", "data", "usage"} and found["object"] == "list"
    assert found["data"] == [{"index": 0, "label": "reward", "probs": found["data"][0]["probs"], "num_classes": 1}]
    assert found["usage"]["prompt_tokens"] == plain_reward(model, DIALOGUE, "So.")[1]


def test_classify_takes_several_texts_or_messages_and_gives_a_sigmoid_where_asked(client, model):
    expected = plain(model, PROMPTS, RESPONSES)
    texts = [rendered(model, prompt, text) for prompt, text in zip(PROMPTS, RESPONSES, strict=True)]
    found = post(client, "/classify", input=texts, use_activation=True)
    assert [one["index"] for one in found["data"]] == list(range(6))
    sigmoids = [1 / (1 + math.exp(-reward)) for reward in expected]
    assert [one["probs"][0] for one in found["data"]] == pytest.approx(sigmoids, abs=1e-5)
    messages = [{"role": "user", "content": PROMPTS[0]}, {"role": "assistant", "content": RESPONSES[0]}]
    [one] = post(client, "/classify", messages=messages)["data"]
    assert one["probs"] == pytest.approx(expected[:1], abs=1e-5)


# text-embeddings-inference's request and response: router/src/http/types.rs.
@pytest.mark.parametrize("path", ["/classify", "/get_reward"])
def test_others_are_answered_while_texts_are_taken_apart(client, model, service, monkeypatch, path):
    text, begun, may_end = rendered(model, "Hi", "Yes."), Event(), Event()
    name, key = ("read", "input") if path == "/classify" else ("split", "query")
    taken_apart = getattr(service._reader, name)

    def slow(*args):
        begun.set()
        assert may_end.wait(10), "nobody else was answered"
        return taken_apart(*args)

    monkeypatch.setattr(service._reader, name, slow)
    body = {key: [text], "prompts": [text.partition("Yes.")[0]]}
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(client.post, path, json=body)
        assert begun.wait(10)
        assert client.get("/health").json() == {"status": "ok"}
        may_end.set()
        assert answer.result().status_code == 200


def test_rerank_sorts_responses_to_one_prompt(client, model):
    texts = ["No.", "It is 4.", "Why do you ask?", "4"]
    expected = plain(model, ["2 + 2?"] * 4, texts)
    best_first = sorted(range(4), key=lambda i: expected[i], reverse=True)
    found = post(client, "/rerank", query="2 + 2?", texts=texts, raw_scores=True, return_text=True, truncate=False)
    assert [one["index"] for one in found] == best_first
    assert [one["text"] for one in found] == [texts[i] for i in best_first]
    assert [one["score"] for one in found] == pytest.approx([expected[i] for i in best_first], abs=1e-5)
    found = post(client, "/rerank", query=[{"role": "user", "content": "2 + 2?"}], texts=texts)
    sigmoids = [1 / (1 + math.exp(-expected[i])) for i in best_first]
    assert [one["score"] for one in found] == pytest.approx(sigmoids, abs=1e-5) and set(found[0]) == {"index", "score"}


BAD = [
    ("/score", {}, "body: got nothing; send prompts and responses, or conversations"),
    ("/score", {"prompts": ["Hi"]}, "body: got prompts; send prompts and responses, or conversations"),
    (
        "/score",
        {"prompts": ["Hi"], "responses": ["a"], "conversations": []},
        "body: got conversations and prompts and responses; send prompts and responses, or conversations",
    ),
    (
        "/score",
        {"prompts": ["Hi"], "responses": ["a", "b"]},
        "body: got 1 prompts and 2 responses; send one response for each prompt",
    ),
    ("/score", {"prompts": "Hi", "responses": "a"}, "prompts: got 'Hi'; input should be a valid list"),
    ("/score", {"promts": ["Hi"], "responses": ["a"]}, "promts: got an unknown key; take it out"),
    ("/score", {"prompts": ["Hi"], "responses": [3]}, "response 0: got a int; use text"),
    ("/score", {"prompts": [" "], "responses": ["a"]}, "prompt 0: got nothing but white space"),
    ("/score", {"prompts": [5], "responses": ["a"]}, "prompt 0: got a int ('5') in prompt; use text, or turns"),
    (
        "/score",
        {"prompts": [[{"role": "boss", "content": "Hi"}]], "responses": ["a"]},
        "prompt 0: got the role 'boss' in turn 1 of prompt; use system,",
    ),
    (
        "/score",
        {"conversations": [DIALOGUE]},
        "conversations[0]: got no response at its end; end it with a turn of the role assistant",
    ),
    ("/score", {"prompts": ["Hi"] * 9, "responses": ["a"] * 9}, "request: got 9 responses; send at most 8 at a time"),
    ("/rerank", {"query": "Hi", "texts": ["a"] * 9}, "request: got 9 responses; send at most 8 at a time"),
    ("/rerank", {"texts": ["a"]}, "query: got nothing; send it, see docs/serve.md"),
    (
        "/get_reward",
        {"query": ["Hi"] * 20, "prompts": ["H"] * 20},
        "request: got 20 responses; send at most 8 at a time",
    ),
    ("/get_reward", {"query": ["Hi"], "prompts": []}, "body: got 1 query and 0 prompts; send as many of both"),
    (
        "/get_reward",
        {"query": ["Hi"], "prompts": ["Why?"]},
        "prompts[0]: got a query that does not begin with its prompt",
    ),
    ("/classify", {"input": ["Hi"] * 20}, "request: got 20 responses; send at most 8 at a time"),
    ("/classify", {}, "body: got both or none of input and messages; send one of them"),
    ("/classify", {"input": "Hello"}, "input[0]: got 'Hello', with which no text of the chat template begins"),
    ("/classify", {"input": "<user>Hi<eos>"}, "input[0]: got a conversation that ends with a user's turn"),
    ("/classify", {"input": [[1, 2]]}, "body: got an input that is no text; send texts that the chat template wrote"),
    ("/classify", {"messages": DIALOGUE}, "messages: got no response at its end"),
]


@pytest.mark.parametrize(("path", "body", "expected"), BAD)
def test_every_bad_request_is_one_line(client, path, body, expected, caplog):
    line = refused(client, path, **body)
    assert line.startswith(expected), line
    assert caplog.messages == [f"POST {path} was answered with 422: {line}"]
    assert len(line.splitlines()) == 1 or body == {"prompts": "Hi", "responses": "a"}


def test_what_is_no_json_is_one_line(client):
    deep = "[" * 9000 + "]" * 9000
    for content, expected in ((b"{", "broken JSON ("), (b"\xff", "something that"), (deep.encode(), "something that")):
        answer = client.post("/score", content=content, headers={"Content-Type": "application/json"})
        assert 400 <= answer.status_code < 500 and answer.json()["error"].startswith(f"body: got {expected}"), (
            answer.text
        )
    answer = client.post(
        "/score", content=b'{"prompts": ["Hi"], "responses": ["a"]}', headers={"Content-Type": "text/plain"}
    )
    assert answer.status_code == 422
    assert answer.json()["error"].endswith("send an object, with the header Content-Type: application/json")


def test_a_path_that_is_not_there_names_those_that_are(client):
    answer = client.post("/scroe", json={})
    assert answer.status_code == 404
    assert answer.json()["error"].startswith("POST /scroe: got Not Found; there are /, /classify, /get_reward, /health")
    assert client.get("/score").status_code == 405
    assert client.get("/docs").status_code == 404  # a page that would load scripts from elsewhere


def test_a_body_that_is_too_large_is_not_read(client):
    body = {"prompts": ["Hi"], "responses": ["x" * 20_000]}
    line = refused(client, "/score", status=413, **body)
    assert line == "body: got more than 20000 bytes; send fewer rows at a time"
    sent = []

    def chunks():
        for _ in range(100):
            sent.append(1)
            yield b"x" * 1000

    assert client.post("/score", content=chunks()).status_code == 413


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example"])
def test_a_page_from_elsewhere_cannot_have_its_name_point_here(client, host):
    answer = client.post("/score", json={"prompts": ["Hi"], "responses": ["a"]}, headers={"Host": host})
    assert answer.status_code == 421 and answer.json()["error"].startswith(
        f"host: got '{host}'; this server answers to"
    )


@pytest.mark.parametrize("host", ["localhost:8000", "LOCALHOST", "127.0.0.1", "[::1]:8000", "[::1]"])
def test_names_of_this_machine_pass(client, host):
    assert client.get("/health", headers={"Host": host}).status_code == 200


def test_a_reward_that_is_not_finite_is_the_servers_fault(model, monkeypatch, caplog):
    scorer = Scorer.load(model, device="cpu")
    monkeypatch.setattr(scorer.reward, "score_rows", lambda rows, starts, keys: torch.full((len(rows),), torch.nan))
    with TestClient(make_app(RewardService(scorer))) as client:
        line = refused(client, "/score", status=500, prompts=["Hi"], responses=["a"])
    assert line.startswith("model: got UserError: reward ") and "got NaN for 1 of 1 responses" in line
    assert "a request cannot be scored" in caplog.messages and "checked_scores" in caplog.text  # a traceback


def test_a_fault_of_the_server_is_said_to_be_one(service, client, monkeypatch):
    monkeypatch.setattr(service, "info", lambda: 1 / 0)
    answer = client.get("/")
    line = "got ZeroDivisionError: division by zero, which is no fault of the request; look at the server's terminal"
    assert (answer.status_code, answer.json()) == (500, {"error": f"server: {line}"})


def test_a_client_that_never_waits_is_told_to_come_later(client, monkeypatch):
    def busy(*_):
        raise Busy

    monkeypatch.setattr(BatchingScorer, "submit", busy)
    line = refused(client, "/score", status=503, prompts=["Hi"], responses=["a"])
    assert line == "server: got more rows than it can hold; send them again later"


def test_texts_that_no_encoding_has_are_scored(client, model):
    answer = client.post(
        "/score",
        content=json.dumps({"prompts": ["Hi"], "responses": ["a\ud800"]}),
        headers={"Content-Type": "application/json"},
    )
    assert answer.json()["rewards"] == pytest.approx(plain(model, ["Hi"], ["a?"]), abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "status", "expected"),
    [
        ("/rerank", {"query": "Hi", "texts": ["a\ud800"], "return_text": True}, 200, '"text":"a?"'),
        ("/score", {"prompts": [[{**DIALOGUE[0], "\ud800": 1}]], "responses": ["a"]}, 422, "got ? in turn 1 of prompt"),
    ],
)
def test_texts_that_no_encoding_has_are_answered(client, path, body, status, expected):
    answer = client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == status and expected in answer.text
