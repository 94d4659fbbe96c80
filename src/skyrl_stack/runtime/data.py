"""The data plane: what OpenHands' agent server would answer inside one sandbox. `front.py` has checked the key."""

from collections.abc import Awaitable, Iterator
from pathlib import PurePosixPath
from typing import Annotated, Any, BinaryIO

from fastapi import FastAPI, Query, Request, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from skyrl_stack.runtime import git
from skyrl_stack.runtime.disconnect import unless_disconnected
from skyrl_stack.runtime.failures import answer_failures
from skyrl_stack.runtime.lease import Lease
from skyrl_stack.runtime.wire import BashOutput, BashRequest, Conflict, NotRight

UPLOAD = "/api/file/upload"
_CHUNK = 1 << 20


def _plain(path: str) -> str:
    if not path.startswith("/") or "\0" in path or ".." in PurePosixPath(path).parts:
        raise PydanticCustomError("path", "must be an absolute path without `..` and NUL")
    return path


FilePath = Annotated[str, Query(), AfterValidator(_plain)]


def data_plane() -> FastAPI:
    """The application of every sandbox; `request.state.lease` says which one a request is for."""
    app = FastAPI(openapi_url=None)
    answer_failures(app)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/api/bash/start_bash_command")
    async def start_command(body: BashRequest, request: Request) -> dict[str, Any]:
        command = _lease(request).commands.start(body)
        return {"kind": "BashCommand", "id": command.id, **body.model_dump()}

    @app.get("/api/bash/bash_events/search")
    async def search(
        request: Request,
        command_id: Annotated[str, Query(alias="command_id__eq")],
        after: Annotated[int, Query(alias="order__gt")] = -1,
    ) -> dict[str, Any]:
        output = await _lease(request).commands.output(command_id)
        return {"items": [output] if output and output.order > after else [], "next_page_id": None}

    @app.post("/api/bash/execute_bash_command")
    async def execute(body: BashRequest, request: Request) -> BashOutput:
        return await unless_disconnected(request, _lease(request).commands.execute(body))

    @app.post("/api/bash/bash_commands/{command_id}/stop")
    async def stop_command(command_id: str, request: Request) -> dict[str, bool]:
        await _lease(request).commands.stop(command_id)
        return {"success": True}

    @app.post(UPLOAD)
    async def upload(path: FilePath, file: UploadFile, request: Request) -> dict[str, Any]:
        await _as_request(_lease(request).sandbox.write_from(path, file.file))
        return {"success": True, "file_size": file.size}

    @app.get("/api/file/download")
    async def download(path: FilePath, request: Request) -> StreamingResponse:
        file = await _as_request(_lease(request).sandbox.open_file(path))
        return StreamingResponse(_content(file), media_type="application/octet-stream")

    @app.get("/api/git/changes")
    async def changes(path: FilePath, request: Request) -> list[dict[str, str]]:
        return await git.changes(_lease(request).sandbox, path)

    @app.get("/api/git/diff")
    async def diff(path: FilePath, request: Request) -> dict[str, Any]:
        return await git.diff(_lease(request).sandbox, path)

    return app


def _content(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _lease(request: Request) -> Lease:
    """The lease that the request is for.

    Raises:
        Conflict: it is paused.
    """
    lease: Lease = request.state.lease
    if lease.status == "paused":
        raise Conflict(f"sandbox {lease.id} is paused; resume it first")
    return lease


async def _as_request[T](work: Awaitable[T]) -> T:
    """What the sandbox finds wrong with its arguments is wrong with the request."""
    try:
        return await work
    except ValueError as error:
        raise NotRight(str(error)) from error
