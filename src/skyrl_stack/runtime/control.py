"""The control plane: OpenHands' runtime API. One-line routes; `front.py` has checked the token."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import StreamingResponse

from skyrl_stack.runtime.disconnect import unless_disconnected
from skyrl_stack.runtime.failures import answer_failures
from skyrl_stack.runtime.leases import Leases
from skyrl_stack.runtime.metrics import CONTENT_TYPE
from skyrl_stack.runtime.wire import RuntimeInfo, RuntimeRequest, StartRequest

_CHUNK = 1 << 20


def control_plane(leases: Leases) -> FastAPI:
    """The application that starts and ends sandboxes."""
    app = FastAPI(openapi_url=None)
    answer_failures(app)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", **leases.load().model_dump(), "oldest_wait_s": round(leases.oldest_wait_s, 3)}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(leases.metrics(), media_type=CONTENT_TYPE)

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
        with lease.in_use():
            await lease.sandbox.pause()
            lease.status = "paused"
        return {"status": lease.status}

    @app.post("/resume")
    async def resume(body: RuntimeRequest) -> dict[str, str]:
        lease = leases.get(body.runtime_id)
        with lease.in_use():
            await lease.sandbox.resume()
            lease.status = "running"
        return {"status": lease.status}

    return app


def _content(file: Path) -> Iterator[bytes]:
    """What is in `file`, which is then removed."""
    with file.open("rb") as stream:
        file.unlink()
        while chunk := stream.read(_CHUNK):
            yield chunk
