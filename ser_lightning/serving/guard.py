"""What is refused before anything of a request is read: a body that is too large, a host that is not this machine."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Guard:
    """ASGI middleware.

    Args:
        app: gets the requests that pass.
        max_body_bytes: most bytes in a body, whatever its header says.
        hosts: names in the `Host` header, without the port, that pass; None = all.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, hosts: Sequence[str] | None) -> None:
        self.app, self.max_body_bytes, self.hosts = app, max_body_bytes, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if self.hosts is not None and name.lower() not in self.hosts:
            line = f"host: got {host[:100]!r}; this server answers to {', '.join(self.hosts)}"
            await _refuse(scope, receive, send, 421, line)
            return
        body = await self._read(receive)
        if body is None:
            line = f"body: got more than {self.max_body_bytes} bytes; send fewer rows at a time"
            await _refuse(scope, receive, send, 413, line)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None for one that is too large, which is not read to its end."""
        parts, size, has_more = [], 0, True
        while has_more:
            message = await receive()
            part = message.get("body", b"")
            size += len(part)
            if size > self.max_body_bytes:
                return None
            parts.append(part)
            has_more = message.get("more_body", False)  # false for a client that has gone as well
        return b"".join(parts)


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, line: str) -> None:
    await JSONResponse({"error": line}, status_code=status)(scope, receive, send)
