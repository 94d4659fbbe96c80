"""The control plane: OpenHands' runtime API. One-line routes; `front.py` has checked the token."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse

from skyrl_stack import __version__
from skyrl_stack.runtime.disconnect import unless_disconnected
from skyrl_stack.runtime.failures import answer_failures
from skyrl_stack.runtime.leases import Leases
from skyrl_stack.runtime.metrics import CONTENT_TYPE
from skyrl_stack.runtime.wire import ClientId, Health, ImageNames, RuntimeInfo, RuntimeRequest, StartRequest, Unknown

_CHUNK = 1 << 20


def control_plane(leases: Leases, tasks_file: Path | None) -> FastAPI:
    """The application that starts and ends sandboxes; `tasks_file` are the tasks whose images this runtime has."""
    app = FastAPI(openapi_url=None)
    answer_failures(app)

    def _health() -> Health:
        return Health(
            version=__version__,
            isolation=leases.isolation,
            oldest_wait_s=round(leases.oldest_wait_s, 3),
            **leases.load().model_dump(),
        )

    @app.get("/health")
    async def health() -> Health:
        return _health()

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(leases.metrics(), media_type=CONTENT_TYPE)

    @app.post("/clients/{client}")
    async def sign_of_life(client: ClientId) -> Health:
        leases.clients.heard(client)
        return _health()

    @app.delete("/clients/{client}")
    async def leave(client: ClientId) -> dict[str, str]:
        await leases.end_client(client)
        return {"status": "left"}

    @app.get("/tasks")
    async def tasks() -> Response:
        if tasks_file is None or not tasks_file.is_file():
            raise Unknown("this runtime has no task file")
        return Response(await asyncio.to_thread(tasks_file.read_bytes), media_type="application/jsonl")

    @app.post("/images/lacking")
    async def lacking(body: ImageNames) -> ImageNames:
        return ImageNames(references=tuple(await leases.lacking_images(body.references)))

    @app.get("/images")
    async def images(reference: Annotated[list[str], Query(min_length=1)]) -> StreamingResponse:
        archive = await leases.save_images(reference)
        return StreamingResponse(_content(archive), media_type="application/x-tar")

    @app.post("/start")
    async def start(body: StartRequest, request: Request) -> RuntimeInfo:
        lease = await unless_disconnected(request, leases.start(body))
        return lease.info()

    @app.get("/sessions/{session_id}")
    async def session(session_id: str) -> RuntimeInfo:
        lease = leases.of_session(session_id)
        with lease.in_use():
            return lease.info()

    @app.post("/stop")
    async def stop(body: RuntimeRequest) -> dict[str, str]:
        await leases.end(leases.get(body.runtime_id))
        return {"status": "stopped"}

    @app.post("/pause")
    async def pause(body: RuntimeRequest) -> dict[str, str]:
        lease = leases.get(body.runtime_id)
        await leases.pause(lease)
        return {"status": lease.status}

    @app.post("/resume")
    async def resume(body: RuntimeRequest) -> dict[str, str]:
        lease = leases.get(body.runtime_id)
        await leases.resume(lease)
        return {"status": lease.status}

    return app


def _content(file: Path) -> Iterator[bytes]:
    """What is in `file`, which is then removed."""
    with file.open("rb") as stream:
        file.unlink()
        while chunk := stream.read(_CHUNK):
            yield chunk
