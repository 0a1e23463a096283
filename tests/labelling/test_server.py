"""The page's requests: what they do, and whom they refuse."""

import errno
import re
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from ser_lightning.errors import UserError
from ser_lightning.labelling.label_file import LabelFile, read_labels
from ser_lightning.labelling.server import LabelApp, open_socket
from ser_lightning.labelling.session import Session
from tests.labelling.people import pair

HOME = "http://127.0.0.1"
SECRET = {"x-label-token": "secret"}


@pytest.fixture
def pairs():
    return [pair(n) for n in range(3)]


@pytest.fixture
def file(tmp_path):
    with LabelFile(tmp_path / "labels", "ana") as file:
        yield file


@pytest.fixture
def app(file, pairs):
    return LabelApp(Session(pairs, file, "ana"), "secret", "label pairs.jsonl --export out.jsonl").app()


@pytest.fixture
def client(app):
    return TestClient(app, base_url=HOME)


def answer(client, one, choice="left", seconds=1.5, **headers):
    row = {"pair": str(one.pair_id), "choice": choice, "seconds": seconds}
    return client.post("/answer", json=row, headers={**SECRET, **headers})


def test_an_answer_is_on_the_disk_and_brings_the_next_pair(client, pairs, tmp_path):
    state = client.get("/state", headers=SECRET).json()
    assert state["pair"]["id"] == str(pairs[0].pair_id) and state["next_command"].endswith("--export out.jsonl")
    reply = answer(client, pairs[0], "tie")
    assert reply.status_code == 200 and reply.json()["pair"]["id"] == str(pairs[1].pair_id)
    [label] = read_labels(tmp_path / "labels")["ana"]
    assert (label.pair_id, label.answer, label.seconds) == (pairs[0].pair_id, "tie", 1.5)
    reply = client.post("/undo", json={}, headers=SECRET)
    assert reply.json()["pair"]["id"] == str(pairs[0].pair_id)
    assert read_labels(tmp_path / "labels")["ana"] == []


def test_evidence_is_asked_of_answers_that_decide(file, pairs):
    asked, ids = [], [one.pair_id for one in pairs]
    evidence = SimpleNamespace(refresh=asked.append, lines=["So far so good."], is_pending=True)
    page = TestClient(LabelApp(Session(pairs, file, "ana"), "secret", "", evidence).app(), base_url=HOME)
    for one, choice in zip(pairs, ("left", "tie", "right"), strict=True):
        reply = answer(page, one, choice).json()
        assert (reply["evidence"], reply["is_pending"]) == (["So far so good."], True)
    sides = {label.pair_id: label.answer for label in file.labels}
    decided = {ids[0]: int(sides[ids[0]] == "a"), ids[2]: int(sides[ids[2]] == "a")}
    assert asked == [{}, {ids[0]: decided[ids[0]]}, {ids[0]: decided[ids[0]]}, decided]


def test_a_pair_is_labelled_once(client, pairs, file):
    answer(client, pairs[0])
    reply = answer(client, pairs[0], "right")
    assert reply.status_code == 409 and reply.json()["pair"]["id"] == str(pairs[1].pair_id)
    assert len(file.labels) == 1


def test_who_does_not_know_the_token_sees_and_changes_nothing(client, pairs, file):
    for token in ({}, {"x-label-token": "secreT"}, {"x-label-token": "é".encode()}):
        for reply in (
            client.get("/state", headers=token),
            client.post("/undo", json={}, headers=token),
            client.post("/answer", json={"pair": str(pairs[0].pair_id), "choice": "left"}, headers=token),
        ):
            assert reply.status_code == 403 and "What is" not in reply.text
    for address in ("/", "/?token=", "/?token=wrong"):
        reply = client.get(address)
        assert reply.status_code == 403 and "Open the address that the terminal shows" in reply.text
    assert not file.labels


def test_another_name_of_the_host_is_refused(app, pairs, file):
    rebound = TestClient(app, base_url="http://evil.example")
    assert rebound.get("/?token=secret").status_code == 400
    assert answer(rebound, pairs[0]).status_code == 400
    assert TestClient(app, base_url="http://localhost:8000").get("/?token=secret").status_code == 200
    assert not file.labels


def test_another_site_is_refused(client, pairs, file):
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert answer(client, pairs[0], origin=origin).status_code == 403
    assert not file.labels
    assert answer(client, pairs[0], origin=HOME).status_code == 200


BAD = [
    b"",
    b"no json",
    b"[]",
    b'{"pair": "1"}',
    b'{"pair": "1", "choice": "best"}',
    b'{"pair": "x", "choice": "left"}',
    b'{"pair": "1", "choice": ["left"]}',
    b'{"pair": "1", "choice": "left", "seconds": -1}',
    b'{"pair": "1", "choice": "left", "seconds": NaN}',
    b'{"pair": "1", "choice": "left", "seconds": true}',
    b"\xff\xfe",
]


@pytest.mark.parametrize("body", BAD)
def test_a_request_that_is_none_is_refused(client, body, file):
    reply = client.post("/answer", content=body, headers=SECRET)
    assert reply.status_code == 400 and "a choice of left, right, tie, skip" in reply.text
    assert not file.labels


def test_a_long_request_is_refused(client):
    assert client.post("/answer", content=b" " * 2000, headers=SECRET).status_code == 413


def test_a_full_disk_is_said_and_nothing_counts(client, pairs, file, monkeypatch):
    def full(label):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(file, "add", full)
        reply = answer(client, pairs[0])
    assert reply.status_code == 507 and reply.text == "not saved: No space left on device"
    assert answer(client, pairs[0]).status_code == 200


def test_the_page_runs_its_own_script_alone_and_is_not_kept(client):
    reply = client.get("/?token=secret")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    [nonce] = set(re.findall(r"nonce-([\w-]+)", policy))
    assert re.findall(r'<(script|style) nonce="([^"]+)"', reply.text) == [("style", nonce), ("script", nonce)]
    assert nonce not in client.get("/?token=secret").text  # a new one every time
    assert (reply.headers["cache-control"], reply.headers["referrer-policy"]) == ("no-store", "no-referrer")
    assert "http://" not in reply.text and "https://" not in reply.text  # nothing from elsewhere


def test_texts_go_to_the_page_as_they_are(file):
    prompt = [{"role": "system", "content": "<b>"}, {"role": "user", "content": "</script><script>x()</script>"}]
    one = pair(1)
    hostile = type(one)(5, prompt, "<img src=x onerror=y()>", "ok", None)
    client = TestClient(LabelApp(Session([hostile], file, "ana"), "secret", "").app(), base_url=HOME)
    shown = client.get("/state", headers=SECRET).json()["pair"]
    assert shown["prompt"] == prompt and "<img src=x onerror=y()>" in (shown["left"], shown["right"])
    assert "onerror" not in client.get("/?token=secret").text


def test_a_port_that_is_taken_is_named():
    with open_socket(0) as listener:
        address, port = listener.getsockname()
        assert address == "127.0.0.1"
        with pytest.raises(UserError, match=rf"--port: got {port} \(Address already in use\); give another one"):
            open_socket(port)
    with pytest.raises(UserError, match="--port: got 70000"):
        open_socket(70000)
