"""What a trainer keeps on its node goes when it does, and its children with it, even after a kill -9."""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from skyrl_stack.trainer.cluster import private_directory, write_token
from skyrl_stack.trainer.guard import processes_of

PROGRAM = """
import subprocess, sys, time
from pathlib import Path
from skyrl_stack.trainer.cluster import private_directory
with private_directory("guarded", Path("/run")) as path:
    subprocess.Popen(["sleep", "60"], start_new_session=True)
    print(path, flush=True)
    time.sleep(60)
"""


def gone(path: str, timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if not Path(path).exists() and not processes_of(path):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_children_and_directory_go_with_the_process(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    assert process.stdout
    path = process.stdout.readline().decode().strip()
    assert len(processes_of(path)) == 1
    process.send_signal(number)
    process.wait(10)
    assert gone(path)


def test_it_is_the_place_for_temporary_files_and_for_a_secret() -> None:
    before = tempfile.gettempdir()
    with private_directory("placed", Path("/run")) as path:
        assert path.stat().st_mode & 0o777 == 0o700
        assert tempfile.gettempdir() == str(path)
        token = write_token(path)
        assert token.stat().st_mode & 0o777 == 0o600
        assert len(token.read_text()) == 64
        subprocess.run(["sh", "-c", "mktemp"], check=True, capture_output=True)
        assert len(list(path.glob("tmp.*"))) == 1
    assert tempfile.gettempdir() == before
    assert gone(str(path), timeout_s=0.1)
