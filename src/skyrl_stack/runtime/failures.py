"""Failures as answers: each error that a caller can mean something by has a status; the body is {error, detail}."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from skyrl_stack.runtime.wire import STATUSES, NotRight

LOG = logging.getLogger(__name__)


def failure(status: int, error: str, detail: str) -> JSONResponse:
    return JSONResponse({"error": error, "detail": " ".join(detail.split())}, status)


def answer_failures(app: FastAPI) -> None:
    """Give `app` an answer for every failure."""

    async def known(_: Request, error: Exception) -> JSONResponse:
        kind = next(kind for kind in STATUSES if isinstance(error, kind))
        return failure(STATUSES[kind], kind.__name__, str(error))

    async def malformed(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return failure(422, NotRight.__name__, f"{place}: {first['msg']}")

    async def unrouted(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return failure(error.status_code, "HTTPException", str(error.detail))

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return failure(500, type(error).__name__, str(error))

    for kind in STATUSES:
        app.add_exception_handler(kind, known)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, unrouted)
    app.add_exception_handler(Exception, unexpected)
