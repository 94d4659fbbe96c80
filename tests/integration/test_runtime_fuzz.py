"""Both planes of a real runtime under requests that schemathesis makes up: no 5xx, no hang, one sentence each."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from test_runtime_server import TOKEN, Server, run_server

from skyrl_stack.runtime.control import control_plane
from skyrl_stack.runtime.data import data_plane
from skyrl_stack.runtime.leases import Leases
from skyrl_stack.runtime.wire import API_KEY, SESSION_KEY
from skyrl_stack.runtime_section import RuntimeSection

pytestmark = [pytest.mark.podman, pytest.mark.anyio, pytest.mark.timeout(180)]

EXAMPLES = 12
"Of each operation."
HANG_S = 20
COMMAND_S = 2.0
"What a made-up command may take at most."


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def server(tests_cache: Any, tiny_image: str) -> AsyncIterator[Server]:
    async with run_server(tests_cache, tiny_image, RuntimeSection(max_sandboxes=8)) as server:
        yield server


def fuzz(app: FastAPI, url: str, headers: dict[str, str], adapt: Callable[[Case, bool], None]) -> dict[int, int]:
    """Send what schemathesis makes up; `adapt` may put something real in. Returns how often each status came."""
    schema = schemathesis.openapi.from_dict(app.openapi())
    statuses: dict[int, int] = {}
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) >= 7

    for operation in operations:

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(), real=st.booleans())
        def check(case: Case, real: bool) -> None:
            adapt(case, real)
            answer = case.call(base_url=url, headers=headers, timeout=HANG_S)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            assert answer.status_code < 500 and answer.status_code != 410, f"{case.as_curl_command()}: {answer.text}"
            if answer.status_code >= 400 and case.method != "HEAD":
                body = answer.json()
                assert set(body) == {"error", "detail"}
                assert body["detail"]
                assert "\n" not in body["detail"]
            elif case.path == "/start":
                runtime_id = answer.json()["runtime_id"]
                schema["/stop"]["POST"].Case(body={"runtime_id": runtime_id}).call(base_url=url, headers=headers)

        check()
    return statuses


async def test_the_control_plane_answers_whatever_it_is_sent(server: Server) -> None:
    live = (await server.start())["runtime_id"]

    def adapt(case: Case, real: bool) -> None:
        if not real or not isinstance(case.body, dict):
            return
        if case.path == "/start":
            case.body |= {"image": server.image, "session_id": f"fuzz-{random.random()}", "workdir": "/"}
        elif case.path != "/stop" and "runtime_id" in case.body:
            case.body["runtime_id"] = live

    async def unused() -> asyncio.Server:
        raise AssertionError

    leases = Leases(server.podman, RuntimeSection(), unused, client_timeout_s=60)
    app = control_plane(leases, tasks_file=None)  # for its schema
    statuses = await asyncio.to_thread(fuzz, app, server.url, {API_KEY: TOKEN}, adapt)
    assert {200, 404, 422} <= set(statuses)
    assert (await server.control("GET", "/health")).json()["alive"] == 1


async def test_a_sandbox_answers_whatever_it_is_sent(server: Server) -> None:
    sandbox = await server.start()

    def adapt(case: Case, real: bool) -> None:
        if real and "path" in case.query:
            case.query["path"] = f"/testbed/{case.query['path']}"
        if isinstance(case.body, dict) and "command" in case.body:
            timeout = case.body.get("timeout", 300)
            is_long = isinstance(timeout, int | float) and timeout > COMMAND_S
            case.body["timeout"] = COMMAND_S if real or is_long else timeout

    headers = {SESSION_KEY: sandbox["session_api_key"]}
    statuses = await asyncio.to_thread(fuzz, data_plane(), sandbox["url"], headers, adapt)
    assert {200, 404, 422} <= set(statuses)
    answer = await server.data(sandbox, "POST", "/api/bash/execute_bash_command", json={"command": "echo well"})
    assert answer.json()["stdout"] == "well\n"
