"""What goes over the wire: OpenHands' own bodies are understood, and errors keep their type."""

import json

import pytest

from skyrl_stack.errors import RuntimeUnavailable, SandboxLost, SandboxStartFailed
from skyrl_stack.runtime.client import named_error
from skyrl_stack.runtime.git import _status
from skyrl_stack.runtime.wire import ERRORS, STATUSES, Conflict, NotRight, RuntimeInfo, StartRequest, Unknown
from skyrl_stack.sandbox.contract import FileMissing

OPENHANDS_BODY = {
    "image": "ghcr.io/x/y:latest",
    "command": "/usr/local/bin/openhands-agent-server --port 60000",
    "working_dir": "/",
    "environment": {"A": "b"},
    "session_id": "agent-server-0",
    "run_as_user": 10001,
    "fs_group": 10001,
    "image_pull_policy": "IfNotPresent",
    "runtime_class": "sysbox-runc",
    "resource_factor": 2,
}


def test_openhands_body_is_understood() -> None:
    request = StartRequest.model_validate(OPENHANDS_BODY)
    assert (request.image, request.session_id, request.environment) == (
        "ghcr.io/x/y:latest",
        "agent-server-0",
        {"A": "b"},
    )
    assert request.directory is None


@pytest.mark.parametrize(
    ("fields", "directory"),
    [({}, None), ({"working_dir": "/w"}, "/w"), ({"workdir": "/"}, "/"), ({"workdir": "/a", "working_dir": "/"}, "/a")],
)
def test_where_shells_start(fields: dict[str, str], directory: str | None) -> None:
    assert StartRequest.model_validate({"image": "x", "session_id": "s", **fields}).directory == directory


@pytest.mark.parametrize(
    "kind", [SandboxLost, SandboxStartFailed, RuntimeUnavailable, FileMissing, NotRight, Conflict, Unknown]
)
def test_an_error_keeps_its_type(kind: type[Exception]) -> None:
    error = named_error(STATUSES[kind], json.dumps({"error": kind.__name__, "detail": "why"}).encode())
    assert type(error) is kind
    assert "why" in str(error)
    assert set(ERRORS.values()) == set(STATUSES)


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (502, b"<html>Bad gateway</html>"),
        (502, b"\xff"),
        (500, b'{"error": "KeyError", "detail": "x"}'),
        (401, b'{"error": "Unauthorized", "detail": "x"}'),
        (400, b'["unexpected"]'),
    ],
)
def test_any_other_answer_is_an_unavailable_runtime(status: int, answer: bytes) -> None:
    error = named_error(status, answer)
    assert type(error) is RuntimeUnavailable
    assert str(status) in str(error)


def test_a_key_is_not_shown() -> None:
    info = RuntimeInfo(runtime_id="r", session_id="s", url="http://x", session_api_key="secret-key", status="running")
    assert "secret-key" not in repr(info)


@pytest.mark.parametrize(
    ("letters", "status"),
    [
        *(("??", "ADDED"), ("A ", "ADDED"), ("AM", "ADDED")),
        *((" D", "DELETED"), ("D ", "DELETED")),
        *((" M", "UPDATED"), ("M ", "UPDATED"), ("UU", "UPDATED"), (" T", "UPDATED")),
    ],
)
def test_letters_of_git(letters: str, status: str) -> None:
    assert _status(letters) == status
