"""How the trainer's process ends: by a signal, by a lost peer, and when its clean-up hangs."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import signal, sys, threading, time
from skyrl_stack.errors import PeerLost
from skyrl_stack.trainer import ending
ending.GRACE_S = 1.0
try:
    with ending.Ending() as end:
        if sys.argv[1] == "lost":
            threading.Timer(0.1, end.peer_lost, ["the runtime failed"]).start()
        try:
            print("ready", flush=True)
            time.sleep(30)
        except SystemExit:
            if sys.argv[1] == "ray":
                raise SystemExit(1) from None
            raise
        finally:
            time.sleep(30 if sys.argv[1] == "hang" else 0)
            print("closed", flush=True)
except PeerLost as error:
    print("PeerLost:", error, flush=True)
    sys.exit(1)
"""


def end(case: str, number: signal.Signals | None) -> tuple[int, list[str]]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, case], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    if number:
        process.send_signal(number)
    printed, _ = process.communicate(timeout=20)
    return process.returncode, printed.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_closes_everything_in_order(number: signal.Signals) -> None:
    assert end("signal", number) == (128 + number, ["closed"])


def test_ray_may_swallow_the_exit_code() -> None:
    assert end("ray", signal.SIGTERM) == (128 + signal.SIGTERM, ["closed"])


def test_a_lost_peer_is_named() -> None:
    assert end("lost", None) == (1, ["closed", "PeerLost: the runtime failed"])


def test_a_hanging_clean_up_is_cut_short() -> None:
    assert end("hang", signal.SIGTERM) == (128 + signal.SIGTERM, [])
