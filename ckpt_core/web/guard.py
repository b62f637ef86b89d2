"""Who may ask: everything is refused here that does not come from where it should, before any of it is looked into.

Against pages of other sites in a browser on this machine: the Host must be one of ours (DNS rebinding), the Origin
the same as the Host, and a change needs a JSON body, which no form can send. Against everybody else: a token.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping
from urllib.parse import parse_qs, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ckpt_core.web.problems import problem

__all__ = ["BODY_LIMIT", "LOOPBACK", "Guard"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
BODY_LIMIT = 64 << 10
"""Bytes of a request's body: the largest that means anything here is a tag."""

_TOO_LARGE = f"a body has at most {BODY_LIMIT} bytes"
_READING = frozenset({"GET", "HEAD"})
_CONTENT = b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", _CONTENT),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)  # fmt: skip


class Guard:
    """Lets through to `app` what may be asked. `hosts` are the names by which this server is called."""

    def __init__(self, app: ASGIApp, *, token: str, hosts: Collection[str], allow_write: bool) -> None:
        self._app = app
        self._token = token.encode()
        self._hosts = frozenset(host.lower() for host in hosts)
        self._allow_write = allow_write
        # Cookies are shared by all ports of a host.
        self._cookie = f"ckpt-{hashlib.sha256(self._token).hexdigest()[:12]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                more = [pair for pair in (*_HEADERS, (b"cache-control", b"no-store")) if pair[0] not in own]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, answer)
            return
        await self._app(scope, _limited(receive), answer)

    def _refusal(self, scope: Scope) -> Response | None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        method: str = scope["method"]
        return (
            self._of_another_place(headers)
            or self._enter(scope)
            or self._without_token(headers)
            or self._change(method, headers)
        )

    def _of_another_place(self, headers: Mapping[bytes, list[bytes]]) -> Response | None:
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or (b"content-length" in headers and b"transfer-encoding" in headers):
            return problem(400, "one Host, and one way to tell the length of the body", "request")
        host = _name_of(hosts[0])
        if host is None or host not in self._hosts:
            return problem(
                403, "this server is not called by that name: --allow-host NAME lets it be", "host"
            )
        for origin in headers.get(b"origin", []):
            scheme, _, place = origin.lower().partition(b"://")
            if scheme not in (b"http", b"https") or place != hosts[0].lower():
                return problem(403, "pages of other sites may not ask", "origin")
        if b"cross-site" in headers.get(b"sec-fetch-site", []):
            return problem(403, "pages of other sites may not ask", "origin")
        return None

    def _enter(self, scope: Scope) -> Response | None:
        """The printed address: its token becomes a cookie, and goes out of the address at once."""
        if scope["path"] != "/" or scope["method"] not in _READING or b"token=" not in scope["query_string"]:
            return None
        try:
            (given,) = parse_qs(scope["query_string"].decode("ascii"), max_num_fields=4)["token"]
        except (KeyError, ValueError):
            given = ""
        if not self._is_token(given.encode()):
            return _who()
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self._cookie, given, httponly=True, samesite="strict", path="/")
        return answer

    def _without_token(self, headers: Mapping[bytes, list[bytes]]) -> Response | None:
        given = [
            value[7:].strip()
            for value in headers.get(b"authorization", [])
            if value[:7].lower() == b"bearer "
        ]
        for value in headers.get(b"cookie", []):
            cookies = cookie_parser(
                value.decode("latin-1")
            )  # one of another server that is odd does not matter
            given.append(cookies.get(self._cookie, "").encode())
        return None if any(self._is_token(each) for each in given) else _who()

    def _change(self, method: str, headers: Mapping[bytes, list[bytes]]) -> Response | None:
        if method in _READING:
            return None
        if not self._allow_write:
            return problem(
                403, "this server only reads: `ckpt serve --allow-write` lets it change things", "read-only"
            )
        if method != "DELETE":
            kinds = [value.partition(b";")[0].strip().lower() for value in headers.get(b"content-type", [])]
            if kinds != [b"application/json"]:
                return problem(415, "send Content-Type: application/json", "content-type")
        try:
            lengths = [int(value) for value in headers.get(b"content-length", [])]
        except ValueError:
            return problem(400, "Content-Length must be a number", "request")
        return _too_large() if any(length > BODY_LIMIT for length in lengths) else None

    def _is_token(self, given: bytes) -> bool:
        return hmac.compare_digest(given, self._token)


def _who() -> Response:
    detail = "send the token that `ckpt serve` made: Authorization: Bearer TOKEN; or open the address that it printed"
    return problem(401, detail, "token", headers={"WWW-Authenticate": 'Bearer realm="ckpt"'})


def _too_large() -> Response:
    return problem(413, _TOO_LARGE, "body", headers={"Connection": "close"})


def _name_of(host: bytes) -> str | None:
    """The name in a Host header, without its port; None for what is none."""
    try:
        parts = urlsplit(f"//{host.decode('ascii')}")
        parts.port  # noqa: B018 - raises for one that is no number
    except ValueError:
        return None
    return parts.hostname if not (parts.path or parts.query or parts.username or parts.fragment) else None


def _limited(receive: Receive) -> Receive:
    count = 0

    async def limited() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > BODY_LIMIT:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return limited
