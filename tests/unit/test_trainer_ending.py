"""How the trainer's process ends: by a signal, by a lost peer, when its clean-up hangs; and when it leaves in order."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from skyrl_stack.trainer.ending import EXIT_LEFT, Departure

PROGRAM = """
import signal, sys, threading, time
from skyrl_stack.errors import NodeLost, PeerLost
from pathlib import Path
from skyrl_stack.trainer import ending
ending.GRACE_S = 1.0
try:
    with ending.Ending(comes_back=sys.argv[1].endswith("comes back")) as end:
        if sys.argv[1] == "lost":
            threading.Timer(0.1, end.peer_lost, ["the runtime failed"]).start()
        if sys.argv[1].startswith("node"):
            threading.Timer(0.1, end.node_lost, ["Ray ended on gpu2"]).start()
        asked = Path(sys.argv[2], "leave")
        if sys.argv[1] == "step":
            end.after_steps(asked)
        try:
            print("ready", flush=True)
            if sys.argv[1].startswith("Ray first"):
                raise NodeLost("lost gpu2")
            for _ in range(300):
                time.sleep(0.1)
                if asked.exists():
                    break
        except SystemExit:
            if sys.argv[1] == "ray":
                raise SystemExit(1) from None
            raise
        finally:
            time.sleep(30 if "hang" in sys.argv[1] else 0)
            print("closed", flush=True)
except (NodeLost, PeerLost) as error:
    print(f"{type(error).__name__}:", error, flush=True)
    sys.exit(1)
"""


def end(case: str, number: signal.Signals | None, folder: str = "/nowhere") -> tuple[int, list[str]]:
    with subprocess.Popen([sys.executable, "-c", PROGRAM, case, folder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        if number:
            process.send_signal(number)
        printed = process.stdout.read()  # `communicate` passes by what `readline` has read ahead
    return process.returncode, printed.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_closes_everything_in_order(number: signal.Signals) -> None:
    assert end("signal", number) == (128 + number, ["closed"])


def test_ray_may_swallow_the_exit_code() -> None:
    assert end("ray", signal.SIGTERM) == (128 + signal.SIGTERM, ["closed"])


def test_a_lost_peer_is_named() -> None:
    assert end("lost", None) == (1, ["closed", "PeerLost: the runtime failed"])


@pytest.mark.parametrize(("noticed", "why"), [("node", "Ray ended on gpu2"), ("Ray first", "lost gpu2")])
def test_a_lost_node_is_named_or_the_trainer_comes_back(noticed: str, why: str) -> None:
    assert end(noticed, None) == (1, ["closed", f"NodeLost: {why}"])
    assert end(f"{noticed} comes back", None) == (EXIT_LEFT, ["closed"])


def test_a_hanging_clean_up_is_cut_short() -> None:
    assert end("hang", signal.SIGTERM) == (128 + signal.SIGTERM, [])


def test_a_clean_up_that_hangs_without_the_lost_node_is_cut_short_and_the_trainer_comes_back() -> None:
    assert end("node, hang, comes back", None) == (EXIT_LEFT, [])
    assert end("node, hang", None) == (128 + signal.SIGTERM, [])


def test_asked_to_leave_before_the_first_step_it_leaves() -> None:
    assert end("signal", signal.SIGUSR1) == (EXIT_LEFT, ["closed"])


def test_asked_to_leave_during_a_step_it_is_passed_on(tmp_path: Path) -> None:
    assert end("step", signal.SIGUSR1, str(tmp_path)) == (0, ["closed"])


@pytest.mark.parametrize(
    ("now", "longest_step_s", "what"),
    [
        (0, 100, "go on"),
        (599, 100, "go on"),
        (601, 100, "save"),  # a step that takes 300 s longer than expected would be cut off
        (899, 100, "save"),
        (901, 100, "leave"),
        (1100, 0, "leave"),
    ],
)
def test_before_a_time_limit_steps_are_saved_and_none_is_begun_that_cannot_end(
    tmp_path: Path, now: float, longest_step_s: float, what: str
) -> None:
    assert Departure(tmp_path / "asked", 1000, 300).after_step(now, longest_step_s) == what


def test_without_a_time_limit_only_who_is_asked_leaves(tmp_path: Path) -> None:
    departure = Departure(tmp_path / "asked", None, 300)
    assert departure.after_step(1e9, 1e6) == "go on"
    departure.asked.touch()
    assert departure.after_step(0, 1) == "leave"
