"""Requests of many threads at once get what each would get alone."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ser_lightning import Scorer, UserError
from ser_lightning.serving import batching
from ser_lightning.serving.batching import BatchingScorer, Busy, ScoringFailed
from tests.helpers import save_reward_model

REQUESTS = [([f"What is {n}?"] * (n % 3 + 1), [f"It is {n}{'!' * i}" for i in range(n % 3 + 1)]) for n in range(12)]


@pytest.fixture
def scorer(tiny_tokenizer, tmp_path):
    save_reward_model(tmp_path / "model", tiny_tokenizer, 60)
    return Scorer.load(tmp_path / "model", device="cpu")


@pytest.fixture
def batches(scorer, monkeypatch):
    """`batches(**settings)` makes one, and notes how many rows each of its batches has in `sizes`."""
    made, sizes = [], []
    score_rows = scorer.score_rows
    monkeypatch.setattr(scorer, "score_rows", lambda rows: sizes.append(len(rows)) or score_rows(rows))

    def make(**settings):
        made.append(BatchingScorer(scorer, **settings))
        made[-1].sizes = sizes
        return made[-1]

    yield make
    for one in made:
        one.close()


def held(scorer, monkeypatch):
    """The thread stops at its first request until the event is set."""
    go, encode = threading.Event(), scorer.encode_rows
    monkeypatch.setattr(scorer, "encode_rows", lambda *a, **k: go.wait(60) and encode(*a, **k))
    return go


def test_requests_of_many_threads_get_the_rewards_of_the_scorer_in_order(scorer, batches):
    expected = [scorer.score(*request).tolist() for request in REQUESTS]
    batched = batches()
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda request: batched.submit(*request).result(60), REQUESTS))
    for one, alone in zip(found, expected, strict=True):
        assert one.rewards == pytest.approx(alone, abs=1e-5) and len(one.tokens) == len(alone)


def test_requests_that_wait_share_a_batch_up_to_its_tokens(scorer, batches, monkeypatch):
    go = held(scorer, monkeypatch)
    batched = batches(max_wait_ms=1000.0)
    scorer.reward.tokens_per_batch = batched._max_tokens = 90
    futures = [batched.submit(["Hi"], ["x" * 10]) for _ in range(7)]  # 32 tokens each
    go.set()
    assert len({future.result(60).rewards[0] for future in futures}) == 1
    assert sum(batched.sizes) == 7 and batched.sizes[:2] == [3, 3]


def test_without_waiting_a_request_goes_alone_when_no_other_is_there(batches):
    batched = batches(max_wait_ms=0.0)
    for _ in range(3):
        batched.submit(["Hi"], ["Yes."]).result(60)
    assert batched.sizes == [1, 1, 1]


def test_a_request_that_cannot_be_read_spoils_no_other(scorer, batches, monkeypatch):
    go = held(scorer, monkeypatch)
    batched = batches(max_wait_ms=1000.0)
    good, bad, other = (batched.submit([prompt], ["Yes."]) for prompt in ("Hi", " ", "Why?"))
    go.set()
    assert good.result(60).rewards == pytest.approx(scorer.score(["Hi"], ["Yes."]).tolist(), abs=1e-5)
    with pytest.raises(UserError, match="prompt 0: got nothing but white space"):
        bad.result(60)
    assert other.result(60).rewards == pytest.approx(scorer.score(["Why?"], ["Yes."]).tolist(), abs=1e-5)


def test_a_request_at_which_the_model_fails_spoils_no_other(scorer, batches, monkeypatch):
    go, score = held(scorer, monkeypatch), scorer.reward.score_rows

    def failing(rows, starts, keys):
        if any(len(row) > 40 for row in rows):
            raise MemoryError("no room")
        return score(rows, starts, keys)

    monkeypatch.setattr(scorer.reward, "score_rows", failing)
    batched = batches(max_wait_ms=1000.0)
    good, bad = batched.submit(["Hi"], ["Yes."]), batched.submit(["Hi"], ["x" * 40])
    go.set()
    assert len(good.result(60).rewards) == 1
    with pytest.raises(ScoringFailed, match="MemoryError: no room"):
        bad.result(60)
    assert batched.is_alive


def test_a_request_at_which_the_tokenizer_fails_spoils_no_other(scorer, batches, monkeypatch, caplog):
    encode = scorer.encode_rows

    def failing(prompts, responses, **kwargs):
        return encode(prompts, responses, **kwargs) if prompts != ["odd"] else 1 / 0

    monkeypatch.setattr(scorer, "encode_rows", failing)
    batched = batches()
    with pytest.raises(ScoringFailed, match="ZeroDivisionError: division by zero"):
        batched.submit(["odd"], ["Yes."]).result(60)
    assert "a request cannot be encoded" in caplog.messages
    assert len(batched.submit(["Hi"], ["Yes."]).result(60).rewards) == 1


def test_a_request_whose_client_has_gone_is_not_scored(scorer, batches, monkeypatch):
    go = held(scorer, monkeypatch)
    batched = batches(max_wait_ms=200.0)
    first, gone, last = (batched.submit(["Hi"], [text]) for text in ("a", "b", "c"))
    assert gone.cancel()
    go.set()
    first.result(60), last.result(60)
    assert sum(batched.sizes) == 2


def test_rows_beyond_what_it_can_hold_are_refused(scorer, batches, monkeypatch):
    monkeypatch.setattr(batching, "MAX_WAITING_ROWS", 4)
    go = held(scorer, monkeypatch)
    batched = batches(max_wait_ms=0.0)
    futures = [batched.submit(["Hi"] * 4, ["a"] * 4)]
    while batched._num_waiting:  # until the thread has taken it
        time.sleep(0.01)
    futures.append(batched.submit(["Hi"] * 3, ["a"] * 3))
    with pytest.raises(Busy):
        batched.submit(["Hi"] * 2, ["a"] * 2)
    go.set()
    assert [len(future.result(60).rewards) for future in futures] == [4, 3]
    assert len(batched.submit(["Hi"] * 4, ["a"] * 4).result(60).rewards) == 4


def test_what_is_queued_is_answered_before_it_closes(scorer, monkeypatch):
    go = held(scorer, monkeypatch)
    batched = BatchingScorer(scorer, max_wait_ms=0.0)
    futures = [batched.submit(["Hi"], ["a"]) for _ in range(3)]
    go.set()
    batched.close()
    assert all(future.done() for future in futures) and not batched.is_alive
