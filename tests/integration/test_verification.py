"""The gate before training: what is accepted, what is quarantined, and that it goes on where it was stopped."""

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from skyrl_stack.cli import main
from skyrl_stack.errors import SetupError
from skyrl_stack.factory.given import given_tasks
from skyrl_stack.factory.make import write_tasks
from skyrl_stack.node import other_processes
from skyrl_stack.sandbox.images import image_store_path
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.tasks.manifest import manifest_of, read_manifest
from skyrl_stack.tasks.task import Task
from skyrl_stack.verification.tampers import TAMPERS
from skyrl_stack.verification.verify import Outcome, Verifier, verify_tasks

pytestmark = [pytest.mark.podman, pytest.mark.timeout(250)]


def verified(file: Path, *, repeats: int = 1, said: list[str] | None = None) -> Outcome:
    say = said.append if said is not None else print
    return asyncio.run(verify_tasks(file, repeats=repeats, at_once=2, timeout_s=60, say=say))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.jsonl"


def test_a_sound_task_is_accepted_and_a_second_call_does_nothing(inflection_tasks: list[Task], file: Path) -> None:
    """Killed after its first task, it goes on with the second, and half a line of the manifest harms nothing."""
    first, second = inflection_tasks
    write_tasks(file, [first])
    (found,) = verified(file, repeats=2).verifications
    assert found.accepted
    assert [check.name for check in found.checks] == ["gold", "gold", "no-op", *TAMPERS]
    assert [check.resolved for check in found.checks] == [True, True] + [False] * 6
    with manifest_of(file).open("a") as manifest:
        manifest.write('{"instance_id": "torn')
    (*_, works) = second.PASS_TO_PASS
    unsound = second.model_copy(update={"FAIL_TO_PASS": (works,)})
    write_tasks(file, [first, unsound])
    said: list[str] = []
    outcome = verified(file, said=said)
    assert said[0] == "1 of 2 tasks to verify, 2 at once"
    assert [one.instance_id for one in outcome.verifications] == [first.instance_id, second.instance_id]
    assert outcome.verifications[1].why == "resolved by: no-op, edited tests, conftest hook"
    assert f"quarantined: {second.instance_id}: {outcome.verifications[1].why}" in outcome.lines()
    said.clear()
    verified(file, said=said)
    assert said == []
    assert len(read_manifest(file)) == 2
    assert asyncio.run(given_tasks(file, said.append)) == [first]
    assert said == [f"{file}: 1 quarantined tasks left out"]


def test_an_error_that_nobody_foresaw_leaves_its_task_undecided_and_no_other(
    inflection_tasks: list[Task], file: Path
) -> None:
    """swebench knows no such parser, and says so by a KeyError. A second call tries that task again."""
    broken, sound = inflection_tasks
    broken = broken.model_copy(update={"log_parser": "parse_log_of_nobody"})
    write_tasks(file, [broken, sound])
    for to_verify in (2, 1):
        shown = CliRunner().invoke(main, ["tasks", "verify", str(file), "--repeats", "1", "--at-once", "1"])
        assert shown.exit_code == 1
        assert f"{to_verify} of 2 tasks to verify" in shown.output
        assert f"{broken.instance_id}: undecided: its checks failed: KeyError: 'parse_log_of_nobody' (" in shown.output
        assert "1 accepted, 0 quarantined, 1 undecided\n" in shown.output
        assert [found.instance_id for found in read_manifest(file).values()] == [sound.instance_id]


def test_a_fix_that_fixes_nothing_is_quarantined(inflection_tasks: list[Task], file: Path) -> None:
    first, _ = inflection_tasks
    wrong = first.model_copy(update={"patch": first.patch.replace("\n+", "\n+# ")})
    write_tasks(file, [wrong])
    assert verified(file).verifications[0].why.startswith("gold: ")


def test_an_image_that_nobody_has_leaves_its_task_undecided_and_no_other(
    inflection_tasks: list[Task], file: Path
) -> None:
    first, sound = inflection_tasks
    made = first.model_copy(update={"instance_id": "made", "image": "localhost/not/there:1"})
    pulled = first.model_copy(update={"instance_id": "pulled", "image": "127.0.0.1:1/not/there:1"})
    write_tasks(file, [made, pulled, sound])
    outcome = verified(file)
    assert "no registry has it; bring it by" in outcome.undecided["made"]
    assert "cannot pull 127.0.0.1:1/not/there:1: no answer" in outcome.undecided["pulled"]
    assert [found.instance_id for found in outcome.verifications] == [sound.instance_id]


def test_a_manifest_that_cannot_be_written_is_one_line(inflection_tasks: list[Task]) -> None:
    async def run() -> None:
        async with PodmanSandboxes(secrets.token_hex(8), image_stores=[image_store_path()]) as provider:
            verifier = Verifier(provider, Outcome(), Path("/dev/full"), print, repeats=1, timeout_s=60)
            await verifier.verify(inflection_tasks[:1], at_once=1)

    with pytest.raises(SetupError, match="/dev/full: No space left on device; what is found is written beside"):
        asyncio.run(run())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_one_that_is_ended_leaves_nothing(inflection_tasks: list[Task], file: Path, number: signal.Signals) -> None:
    """Told to end, it removes all itself; killed, its sandboxes end, and `sweep` finds the files."""
    write_tasks(file, inflection_tasks[:1])
    temporary = Path(tempfile.mkdtemp(dir="/tmp"))  # a short path, for sockets
    temporary.chmod(0o711)  # root's sandboxes are another user's
    environment = os.environ | {"TMPDIR": str(temporary)}
    stack = [sys.executable, str(Path(sys.executable).with_name("skyrl-stack"))]
    try:
        with subprocess.Popen([*stack, "tasks", "verify", str(file)], env=environment) as verifying:
            while not list(temporary.glob("skyrl-*/sandboxes/*")):
                time.sleep(0.1)
                assert verifying.poll() is None
            verifying.send_signal(number)
        if number == signal.SIGKILL:
            assert list(temporary.iterdir())
            subprocess.run([*stack, "sweep"], env=environment, timeout=60, check=True)
        assert verifying.returncode == (-number if number == signal.SIGKILL else 128 + number)
        assert not list(temporary.iterdir())
        assert not [one.pid for one in other_processes() if one.environment.get("TMPDIR") == str(temporary)]
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
