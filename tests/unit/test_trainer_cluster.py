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


END_CUT_SHORT = """
import os, sys
from pathlib import Path
import ray
from ray._private import worker
from skyrl_stack.trainer.cluster import private_directory, ray_directory, write_token
from skyrl_stack.trainer.verl_run import end_ray

def told_to_end(*_):
    worker.disconnect = whole
    sys.exit(143)

with private_directory("cut-short", Path("/run")) as path:
    print(path, flush=True)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(write_token(path))
    ray.init(num_cpus=1, _temp_dir=str(ray_directory(path)), include_dashboard=False, object_store_memory=80 << 20)
    whole, worker.disconnect = worker.disconnect, told_to_end
    end_ray()
"""


def test_nothing_comes_back_of_a_ray_whose_end_was_cut_short() -> None:
    """By a signal that arrives in the middle; at the interpreter's exit Ray then goes on where it was."""
    done = subprocess.run([sys.executable, "-c", END_CUT_SHORT], stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 143
    assert gone(done.stdout.splitlines()[0])
