"""Makes the tiny model for the tasks of a run, or finds it in the cache: traces → supervised start → files."""

import asyncio
import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import skyrl_stack
from skyrl_stack.agent.tokens import Trajectory
from skyrl_stack.profile import Profile
from skyrl_stack.records import Endpoint
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.runtime.client import RuntimeClient
from skyrl_stack.sandbox.storage import cache_dir
from skyrl_stack.tasks.task import Task, read_tasks
from skyrl_stack.trainer.tiny import network, supervised

_SAY_EVERY = 50
_CODE = ("chat_template.jinja", "network.py", "supervised.py", "teacher.py")


def find_or_make(directory: RunDirectory, profile: Profile) -> Path:
    """The directory of the tiny model for the run's tasks. Making it needs the runtime, and a minute or two.

    Raises:
        ProfileError: the tasks are not for the tiny model, or do not fit into its context.
        InfrastructureError: the runtime or a sandbox failed.
        PeerLost: the runtime is not there.
    """
    tasks = list(read_tasks(directory.tasks_file))
    path = cache_dir() / "models" / f"tiny-{_key(tasks, profile)}"
    if path.is_dir():
        return path
    endpoint = directory.await_endpoint("runtime", profile.run.start_timeout_s)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=".tiny-"))
    try:
        _make(draft, tasks, endpoint, profile)
        draft.chmod(0o755)
        draft.replace(path)
    except OSError:
        if not path.is_dir():  # another launch may have been quicker
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path


def _make(path: Path, tasks: Sequence[Task], endpoint: Endpoint, profile: Profile) -> None:
    started = time.monotonic()
    print(f"model: playing the teacher's scripts on {len(tasks)} tasks", flush=True)
    tokenizer, traces = asyncio.run(_teach(tasks, endpoint, profile))
    longest = max(len(trace.prompt_ids) + len(trace.response_ids) for trace in traces)
    print(f"model: traces of up to {longest} tokens in {time.monotonic() - started:.0f} s", flush=True)
    policy: Any = network.new_network(tokenizer, context_tokens=profile.model.context_tokens, seed=profile.model.seed)
    policy.to(profile.trainer.device)

    def say(step: int, loss: float) -> None:
        if (step + 1) % _SAY_EVERY == 0:
            print(f"model: step {step + 1} of {profile.model.sft_steps}, loss {loss:.3f}", flush=True)

    supervised.fit(policy, traces, steps=profile.model.sft_steps, seed=profile.model.seed, say=say)
    policy.save_pretrained(path)
    tokenizer.save_pretrained(path)
    print(f"model: {policy.num_parameters():,} parameters, made in {time.monotonic() - started:.0f} s", flush=True)


async def _teach(
    tasks: Sequence[Task], endpoint: Endpoint, profile: Profile
) -> tuple[network.TinyTokenizer, list[Trajectory]]:
    from skyrl_stack.trainer.tiny.traces import Classroom  # OpenHands takes seconds, and a cached model needs none

    async with RuntimeClient(endpoint) as sandboxes:
        classroom = Classroom(sandboxes, profile)
        tokenizer = await classroom.tokenizer(tasks)
        return tokenizer, await classroom.traces(tasks, tokenizer)


def _key(tasks: Sequence[Task], profile: Profile) -> str:
    """Everything that the model depends on: tasks, profile, and the code that makes it and that it talks to."""
    digest = hashlib.sha256()
    for part in _parts(tasks, profile):
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _parts(tasks: Sequence[Task], profile: Profile) -> Iterator[bytes]:
    yield from (task.model_dump_json().encode() for task in tasks)
    yield profile.model.model_dump_json().encode()
    yield profile.agent.model_dump_json().encode()
    package = Path(skyrl_stack.__file__).parent
    tiny = [package / "trainer" / "tiny" / name for name in _CODE]
    yield from (file.read_bytes() for file in [*tiny, *sorted((package / "agent").rglob("*.py"))])
