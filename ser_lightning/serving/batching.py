"""Rows of several requests in the same batches: one thread scores what arrives within a few milliseconds."""

import itertools
import logging
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ser_lightning.errors import UserError, describe
from ser_lightning.inference.scorer import Row, Scorer

_LOG = logging.getLogger("uvicorn.error")
MAX_WAITING_ROWS = 65_536
"""Beyond which further requests are refused, so that a client that never waits fills no memory."""


class Scored(NamedTuple):
    """What became of the N rows of a request.

    Attributes:
        rewards: raw, in logits.
        tokens: of prompt and response.
        is_cut: where the front of a response was judged alone.
    """

    rewards: list[float]
    tokens: list[int]
    is_cut: list[bool]


class Busy(Exception):
    """Too many rows are waiting."""


class ScoringFailed(Exception):
    """The model, not the request, is at fault."""


@dataclass
class _Job:
    """A request that waits."""

    prompts: Sequence[Any]
    responses: Sequence[str]
    future: Future[Scored] = field(default_factory=Future)
    rows: list[Row] = field(default_factory=list)

    def finish(self, rewards: list[float]) -> None:
        tokens, is_cut = [len(row.ids) for row in self.rows], [row.is_cut for row in self.rows]
        self.future.set_result(Scored(rewards, tokens, is_cut))


class BatchingScorer:
    """Scores requests from any thread in a thread of its own, with the rewards that the `Scorer` alone would give.

    Args:
        scorer: nobody else may use it in the meantime.
        max_wait_ms: how long the first request of a batch waits for others; a batch that is full does not wait.
    """

    def __init__(self, scorer: Scorer, max_wait_ms: float = 5.0) -> None:
        self.scorer = scorer
        self._max_wait = max_wait_ms / 1000
        self._max_tokens = scorer.reward.tokens_per_batch
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._lock, self._num_waiting = threading.Lock(), 0
        self._thread = threading.Thread(target=self._work, name="scoring", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether requests are still answered."""
        return self._thread.is_alive()

    def submit(self, prompts: Sequence[Any], responses: Sequence[str]) -> Future[Scored]:
        """Queue N prompts, texts or lists of turns, and N responses.

        Returns:
            A future that holds the result, a `UserError` for rows that cannot be scored, or `ScoringFailed`.

        Raises:
            Busy: if too many rows are waiting.
        """
        with self._lock:
            if self._num_waiting + len(responses) > MAX_WAITING_ROWS:
                raise Busy
            self._num_waiting += len(responses)
        job = _Job(prompts, responses)
        self._jobs.put(job)
        return job.future

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        is_open = True
        while is_open:
            batch: list[_Job] = []
            num_tokens, deadline = 0, None
            while num_tokens < self._max_tokens:
                try:
                    job = self._jobs.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    break
                if job is None:
                    is_open = False
                    break
                deadline = deadline or time.monotonic() + self._max_wait
                if self._encode(job):
                    batch.append(job)
                    num_tokens += sum(len(row.ids) for row in job.rows)
            self._score(batch)

    def _encode(self, job: _Job) -> bool:
        """Texts to ids; False for a job that is over: its request is gone, or cannot be scored."""
        with self._lock:
            self._num_waiting -= len(job.responses)
        if not job.future.set_running_or_notify_cancel():
            return False
        try:
            job.rows = self.scorer.encode_rows(job.prompts, job.responses, cut_long=True)
        except UserError as error:
            job.future.set_exception(error)
            return False
        except Exception as error:  # one request must not end the thread that serves all others
            _LOG.exception("a request cannot be encoded")
            job.future.set_exception(ScoringFailed(describe(error)))
            return False
        return True

    def _score(self, batch: list[_Job]) -> None:
        """Answer the jobs of a batch; where one of them makes the batch fail, each by itself."""
        if not batch:
            return
        try:
            rewards = iter(self.scorer.score_rows([row for job in batch for row in job.rows]).tolist())
        except Exception as error:  # NaN, no memory left
            if len(batch) == 1:
                _LOG.exception("a request cannot be scored")
                batch[0].future.set_exception(ScoringFailed(describe(error)))
                return
            for job in batch:
                self._score([job])
            return
        for job in batch:
            job.finish(list(itertools.islice(rewards, len(job.rows))))
