"""Entity tags: what a client has already is not sent again (RFC 9110, 304 and If-None-Match); HEAD is a GET without
its body."""

from __future__ import annotations

import hashlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Tagged", "matches", "tag_of"]

HEAD = "ckpt.head"
"""In the scope of a request that wants no body: what streams need not begin."""


def tag_of(*parts: str) -> str:
    """The strong tag of what these texts determine."""
    return '"' + hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32] + '"'


def matches(given: str | None, tag: str) -> bool:
    """Whether an If-None-Match names this tag."""
    if given is None:
        return False
    found = [each.strip().removeprefix("W/") for each in given.split(",")]
    return "*" in found or tag in found


class Tagged:
    """Adds the tag of its bytes to each JSON document, and answers 304 where the client has it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"
        start: Message | None = None
        body = bytearray()

        async def tagged(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                headers = Headers(raw=message["headers"])
                if message["status"] == 200 and headers.get("content-type", "").startswith(
                    "application/json"
                ):
                    start = message
                    return
                await send(message)
            elif start is not None:
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    await _answer(start, bytes(body))
            elif head:
                if not message.get("more_body"):
                    await send({"type": "http.response.body", "body": b""})
            else:
                await send(message)

        async def _answer(begun: Message, document: bytes) -> None:
            headers = MutableHeaders(raw=begun["headers"])
            tag = '"' + hashlib.sha256(document).hexdigest()[:32] + '"'
            headers["etag"] = tag
            headers.setdefault("cache-control", "private, no-cache")
            known = matches(Headers(scope=scope).get("if-none-match"), tag)
            if known:
                del headers["content-length"]
            await send({**begun, "status": 304 if known else 200, "headers": headers.raw})
            await send({"type": "http.response.body", "body": b"" if known or head else document})

        await self._app({**scope, "method": "GET", HEAD: head}, receive, tagged)
