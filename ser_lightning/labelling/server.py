"""The label page: a server for one annotator, which this machine alone can reach.

The address that the terminal shows holds a secret of this start. The page needs it to open, and sends it with every
request in a header that no other site can set: so neither another account of the machine nor a page in another tab can
read or write labels.
"""

import os
import secrets
import socket
from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import uvicorn
from jinja2 import Environment, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ser_lightning.data.turns import read_json
from ser_lightning.errors import UserError
from ser_lightning.labelling.session import NotAsked, Session

if TYPE_CHECKING:  # it brings Lightning along, which a page without a run does not need
    from ser_lightning.labelling.evidence import Evidence

HOST = "127.0.0.1"
TOKEN = "x-label-token"
MAX_BODY = 1000
"""Bytes of a request."""
MAX_SECONDS = 86400.0
_CHOICES = ("left", "right", "tie", "skip")
_HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff"}


class LabelApp:
    """The page and its requests."""

    def __init__(self, session: Session, token: str, next_command: str, evidence: "Evidence | None" = None) -> None:
        self.session, self.token, self.next_command, self.evidence = session, token, next_command, evidence
        self._refresh()

    def app(self) -> Starlette:
        """The application; it refuses names of the host other than the local ones, against DNS rebinding."""
        routes = [
            Route("/", self.page),
            Route("/state", self.state),
            Route("/answer", self.answer, methods=["POST"]),
            Route("/undo", self.undo, methods=["POST"]),
        ]
        hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)
        return Starlette(routes=routes, middleware=[hosts])

    async def page(self, request: Request) -> Response:
        """The page itself, for who knows the address."""
        if not secrets.compare_digest(request.query_params.get("token", "").encode(), self.token.encode()):
            text = "Open the address that the terminal shows: it ends with the token of this start.\n"
            return PlainTextResponse(text, 403, _HEADERS)
        nonce = secrets.token_urlsafe()
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        text = _template().render(token=self.token, nonce=nonce, header=TOKEN)
        return HTMLResponse(text, headers={**_HEADERS, "Content-Security-Policy": policy})

    async def state(self, request: Request) -> Response:
        """What the page shows."""
        self._check(request)
        return self._answer()

    async def answer(self, request: Request) -> Response:
        """Take an answer: `pair`, `choice` and `seconds`; 409 where another pair is asked for."""
        self._check(request)
        pair_id, choice, seconds = _read_answer(await _body(request))
        try:
            self._write(lambda: self.session.answer(pair_id, choice, seconds))
        except NotAsked:
            return self._answer(409)
        return self._answer()

    async def undo(self, request: Request) -> Response:
        """Take the last answer back."""
        self._check(request)
        self._write(self.session.undo)
        return self._answer()

    def _check(self, request: Request) -> None:
        """Whether a request comes from the page."""
        if not secrets.compare_digest(request.headers.get(TOKEN, "").encode(), self.token.encode()):
            raise HTTPException(403, "the page is of an earlier start: open the address that the terminal shows")
        origin = request.headers.get("origin")
        if origin is not None and origin != f"http://{request.headers.get('host')}":
            raise HTTPException(403, "the request comes from another site")

    def _write(self, change: Callable[[], object]) -> None:
        try:
            change()
        except OSError as error:
            raise HTTPException(507, f"not saved: {error.strerror or error}") from error
        self._refresh()

    def _refresh(self) -> None:
        if self.evidence is not None:
            labels = [label for label in self.session.labels if label.answer in ("a", "b")]
            self.evidence.refresh({label.pair_id: int(label.answer == "a") for label in labels})

    def _answer(self, status: int = 200) -> Response:
        evidence = self.evidence
        state: dict[str, Any] = {
            **self.session.state(),
            "evidence": evidence.lines if evidence else [],
            "is_pending": evidence is not None and evidence.is_pending,
            "next_command": self.next_command,
        }
        return JSONResponse(state, status, _HEADERS)


async def _body(request: Request) -> bytes:
    """The body of a request, which is short."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"got more than {MAX_BODY} bytes")
    return body


def _read_answer(body: bytes) -> tuple[int, Any, float | None]:
    """Pair, choice and seconds of a request."""
    try:
        row = read_json(body.decode())
        pair, choice, seconds = str(row["pair"]), row["choice"], row.get("seconds")
        is_time = seconds is None or (type(seconds) in (int, float) and 0 <= seconds <= MAX_SECONDS)
        if not (pair.isascii() and pair.isdecimal() and choice in _CHOICES and is_time):
            raise ValueError
        return int(pair), choice, seconds
    except Exception as error:
        choices = ", ".join(_CHOICES)
        raise HTTPException(400, f"needs the id of a pair, a choice of {choices}, and seconds") from error


def _template() -> Any:
    text = files("ser_lightning.labelling").joinpath("page.html").read_text(encoding="utf-8")
    return Environment(autoescape=True, undefined=StrictUndefined).from_string(text)


def open_socket(port: int) -> socket.socket:
    """A socket that listens on this machine alone.

    Args:
        port: 0 = any that is free.

    Raises:
        UserError: the port is taken, or may not be used.
    """
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise UserError(f"--port: got {port} ({reason}); give another one, or 0 for any that is free") from error


def serve(app: Starlette, listener: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM."""
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])
