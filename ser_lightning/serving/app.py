"""The HTTP interface of a reward model. It reads no file for a request, and writes none."""

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from transformers import PreTrainedTokenizerBase

from ser_lightning.data.turns import clean
from ser_lightning.errors import Causes, UserError, describe
from ser_lightning.inference.scorer import Scorer
from ser_lightning.serving.batching import BatchingScorer, Busy, Scored, ScoringFailed
from ser_lightning.serving.guard import Guard
from ser_lightning.serving.rendered import Conversation, TemplateReader
from ser_lightning.serving.requests import (
    ClassifyRequest,
    OpenRLHFRequest,
    RerankRequest,
    ScoreRequest,
    split_conversation,
)
from ser_lightning.utils.terminal import visible
from ser_lightning.utils.versions import __version__

_LOG = logging.getLogger("uvicorn.error")
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
"""What clients call this machine. A web page from elsewhere that lets its name point here calls it by that name."""


class RewardService:
    """What the endpoints share.

    Args:
        scorer: the reward model.
        policy_tokenizer: has the template that wrote what OpenRLHF sends, None = the reward model's.
        max_rows: most responses in a request.
        max_wait_ms: how long a request waits for others to share a batch with.
    """

    def __init__(
        self,
        scorer: Scorer,
        policy_tokenizer: PreTrainedTokenizerBase | None = None,
        max_rows: int = 1024,
        max_wait_ms: float = 5.0,
    ) -> None:
        self.scorer, self.max_rows = scorer, max_rows
        self.name = "/".join(Path(scorer.reward.name).resolve().parts[-2:])
        self._reader = _reader(scorer.reward.tokenizer)
        self._policy_reader = _reader(policy_tokenizer) if policy_tokenizer else self._reader
        self.batches = BatchingScorer(scorer, max_wait_ms)

    async def score(self, prompts: Sequence[Any], responses: Sequence[Any]) -> Scored:
        """Rewards of N responses; an error of one row is an error of the request."""
        self._check_number(len(responses))
        return await asyncio.wrap_future(self.batches.submit(prompts, responses))

    def info(self) -> dict[str, Any]:
        """Name, scale and limits."""
        scale = {"zero": self.scorer.zero, "temperature": self.scorer.temperature}
        limits = {"max_length": self.scorer.reward.max_length, "max_rows": self.max_rows}
        calibrated = {"is_calibrated": self.scorer.is_calibrated}
        return {"model": self.name, **scale, **calibrated, **limits, "ser_lightning": __version__}

    async def score_rendered(self, texts: list[str]) -> Scored:
        """Rewards of conversations as the reward model's chat template writes them."""
        self._check_number(len(texts))
        read = _readable(self._reader).read
        return await self._score_read(lambda: [read(text, f"input[{i}]") for i, text in enumerate(texts)])

    async def score_queries(self, queries: list[str], prompts: list[str]) -> Scored:
        """Rewards of what a policy wrote after its prompts."""
        self._check_number(len(queries))
        split = _readable(self._policy_reader).split
        both = list(zip(queries, prompts, strict=True))
        return await self._score_read(
            lambda: [split(query, prompt, f"prompts[{i}]") for i, (query, prompt) in enumerate(both)]
        )

    async def _score_read(self, read: Callable[[], list[Conversation]]) -> Scored:
        pairs = await asyncio.to_thread(read)  # megabytes take seconds, in which other requests are answered
        return await self.score([prompt for prompt, _ in pairs], [response for _, response in pairs])

    def _check_number(self, num_rows: int) -> None:
        if num_rows > self.max_rows:
            raise UserError(f"request: got {num_rows} responses; send at most {self.max_rows} at a time")


def make_app(service: RewardService, max_body_bytes: int = 8 * 2**20, hosts: Sequence[str] | None = None) -> FastAPI:
    """The ASGI application.

    Args:
        service: scores; closed when the application ends.
        max_body_bytes: most bytes in the body of a request.
        hosts: what requests may call this machine in their `Host` header, None = anything.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.batches.close)

    # No pages of documentation: they load scripts from elsewhere.
    app = FastAPI(title="ser-lightning", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.include_router(_own_endpoints(service))
    app.include_router(_endpoints_of_others(service))
    app.add_middleware(Guard, max_body_bytes=max_body_bytes, hosts=hosts)
    for kind in (RequestValidationError, HTTPException, UserError, Busy, ScoringFailed, Exception):
        app.add_exception_handler(kind, _answer_error)
    return app


def _own_endpoints(service: RewardService) -> APIRouter:
    router = APIRouter()

    @router.get("/")
    async def info() -> dict[str, Any]:
        return service.info()

    @router.get("/health")
    async def health() -> JSONResponse:
        is_alive = service.batches.is_alive
        return JSONResponse({"status": "ok" if is_alive else "dead"}, status_code=200 if is_alive else 503)

    @router.post("/score")
    async def score(request: ScoreRequest) -> dict[str, Any]:
        found = await service.score(*request.rows())
        return {"rewards": found.rewards, "cut": [i for i, is_cut in enumerate(found.is_cut) if is_cut]}

    return router


def _endpoints_of_others(service: RewardService) -> APIRouter:
    router = APIRouter()

    @router.post("/get_reward")
    async def openrlhf(request: OpenRLHFRequest) -> dict[str, Any]:
        found = await service.score_queries(request.query, request.prompts)
        return {"rewards": found.rewards, "scores": found.rewards, "extra_logs": {}}

    @router.post("/classify")
    async def vllm_classify(request: ClassifyRequest) -> dict[str, Any]:
        if request.messages is not None:
            prompt, response = split_conversation(request.messages, "messages")
            found = await service.score([prompt], [response])
        else:
            found = await service.score_rendered(request.texts())
        shown = [sigmoid(reward) for reward in found.rewards] if request.use_activation else found.rewards
        data = [{"index": i, "label": "reward", "probs": [one], "num_classes": 1} for i, one in enumerate(shown)]
        usage = {"prompt_tokens": sum(found.tokens), "total_tokens": sum(found.tokens), "completion_tokens": 0}
        head = {"id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
        return {**head, "model": service.name, "data": data, "usage": usage}

    @router.post("/rerank")
    async def tei_rerank(request: RerankRequest) -> list[dict[str, Any]]:
        found = await service.score([request.query] * len(request.texts), request.texts)
        order = sorted(range(len(found.rewards)), key=lambda i: -found.rewards[i])
        texts = [{"text": clean(request.texts[i])} if request.return_text else {} for i in order]
        scores = [found.rewards[i] if request.raw_scores else sigmoid(found.rewards[i]) for i in order]
        return [{"index": i, **text, "score": score} for i, text, score in zip(order, texts, scores, strict=True)]

    return router


def sigmoid(reward: float) -> float:
    """Of one number; exact far from 0 as well."""
    return 1 / (1 + math.exp(-reward)) if reward >= 0 else math.exp(reward) / (1 + math.exp(reward))


def _reader(tokenizer: PreTrainedTokenizerBase) -> TemplateReader | UserError:
    """Or why there is none, which only matters to those who send texts that a template wrote."""
    try:
        return TemplateReader(tokenizer)
    except UserError as error:
        return error


def _readable(reader: TemplateReader | UserError) -> TemplateReader:
    if isinstance(reader, UserError):
        raise reader
    return reader


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    """A status and one line for each cause."""
    status, problems = _status_and_problems(request, error)
    lines = clean("\n".join(Causes(problems).lines()[:10])[:2000])
    # Clients such as OpenRLHF's show the status alone.
    _LOG.warning("%s %s was answered with %d: %s", request.method, request.url.path, status, visible(lines))
    return JSONResponse({"error": lines}, status_code=status)


def _status_and_problems(request: Request, error: Exception) -> tuple[int, list[str]]:
    if isinstance(error, RequestValidationError):
        return 422, [_validation_problem(one) for one in error.errors()]
    if isinstance(error, UserError):
        return 422, error.problems
    if isinstance(error, Busy):
        return 503, ["server: got more rows than it can hold; send them again later"]
    if isinstance(error, ScoringFailed):
        return 500, [f"model: got {error}; look at the server's terminal"]
    if isinstance(error, HTTPException) and error.status_code == 400:
        return 400, ["body: got something that cannot be read; send an object in JSON and UTF-8"]
    if isinstance(error, HTTPException):
        known = ", ".join(sorted(request.app.openapi()["paths"]))
        return error.status_code, [f"{request.method} {request.url.path}: got {error.detail}; there are {known}"]
    return 500, [f"server: got {describe(error)}, which is no fault of the request; look at the server's terminal"]


def _validation_problem(error: dict[str, Any]) -> str:
    """One line of pydantic, which lists what it tried."""
    where = ".".join(str(part) for part in error["loc"] if part != "body") or "body"
    if error["type"] == "json_invalid":
        return f"body: got broken JSON ({error['ctx']['error']}); send an object"
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}"
    if error["type"] == "missing":
        return f"{where}: got nothing; send it, see docs/serve.md"
    if error["type"] == "extra_forbidden":
        return f"{where}: got an unknown key; take it out"
    if isinstance(error["input"], bytes):  # FastAPI reads no body that does not call itself JSON
        return "body: got no JSON by its header; send an object, with the header Content-Type: application/json"
    shown = "an object" if isinstance(error["input"], dict) else repr(error["input"])[:60]
    return f"{where}: got {shown}; {error['msg'][0].lower()}{error['msg'][1:]}"
