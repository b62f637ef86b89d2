"""Every way to fail, as a problem document of RFC 9457 (`application/problem+json`)."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ckpt_core.errors import (
    CatalogError,
    CkptError,
    MissingExtraError,
    NotFoundError,
    SignatureError,
    StateMismatchError,
    StoreError,
    UsageError,
)

__all__ = ["MEDIA_TYPE", "PROBLEMS", "catch", "problem"]

MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger("ckpt_core.web")
_TITLES = {
    400: "Bad request", 401: "Who asks?", 403: "Not allowed", 404: "Not found", 405: "Method not allowed",
    406: "Not to be had in this form", 409: "Conflict", 413: "Too large", 415: "Not JSON",
    416: "No such range", 422: "Not valid", 500: "Failed", 501: "Not installed", 503: "Out of reach",
}  # fmt: skip
_STATUS: tuple[tuple[type[CkptError], int], ...] = (
    (NotFoundError, 404), (UsageError, 400), (SignatureError, 403), (MissingExtraError, 501), (CatalogError, 503),
    (StateMismatchError, 404),  # include= names what is not there
)  # fmt: skip
_STORE_STATUS = {"locked": 409, "read-only": 403, "full": 503}

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "What went wrong, as RFC 9457 has it",
        "content": {
            MEDIA_TYPE: {
                "schema": {
                    "type": "object",
                    "required": ["type", "title", "status", "detail"],
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                        "kind": {"type": "string"},
                    },
                }
            }
        },
    }
}


def problem(
    status: int, detail: str, kind: str = "", *, headers: dict[str, str] | None = None, **more: Any
) -> Response:
    """One problem. `kind` is the stable word for the cause, which programs may test."""
    document = {
        "type": f"urn:ckpt:{kind}" if kind else "about:blank",
        "title": _TITLES.get(status, "Failed"),
        "status": status,
        "detail": detail,
        **({"kind": kind} if kind else {}),
        **more,
    }
    text = json.dumps(document, ensure_ascii=True, default=str)
    return Response(text, status, headers, media_type=MEDIA_TYPE)


def status_of(error: CkptError) -> int:
    """The status that belongs to an error of ours."""
    if isinstance(error, StoreError):
        return _STORE_STATUS.get(error.kind, 500)
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def catch(app: FastAPI) -> None:
    """Has the app answer every exception with a problem."""

    def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, CkptError)
        return problem(status_of(error), error.message, error.kind)

    def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = [{"where": ".".join(map(str, each["loc"])), "why": each["msg"]} for each in error.errors()]
        said = "; ".join(f"{each['where']}: {each['why']}" for each in found)
        return problem(422, said, "validation", errors=found)

    def other(request: Request, error: Exception) -> Response:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(500, "this should not happen: the server's log says more", "internal")

    app.add_exception_handler(CkptError, ours)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, other)
