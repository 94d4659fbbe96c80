"""What Slurm says of GPUs and their slices, as recorded on clusters, and what the trainer makes of it."""

import os
from pathlib import Path

import pytest

from skyrl_stack.errors import SetupError
from skyrl_stack.trainer.gpus import VARIABLE, as_ordinal, use_given_gpus

SLICE = "MIG-377e0049-554c-540b-93c6-d0976f8426cb"
OTHER = "MIG-f39aa248-6f1b-5769-b119-8d650bb34b27"
OLD_STYLE = "MIG-GPU-7f57f032-34ab-a064-c37c-7a4f75601cc5/5/0"
LISTING = f"""\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-7f57f032-34ab-a064-c37c-7a4f75601cc5)
  MIG 2g.20gb     Device  0: (UUID: {SLICE})
"""
UNCONSTRAINED = f"""\
{LISTING}  MIG 1g.10gb     Device  1: (UUID: {OTHER})
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-8c7c9c30-f12f-20bf-e14e-d3c4c965af32)
"""


@pytest.mark.parametrize("given", [SLICE, OLD_STYLE])
def test_the_only_slice_that_can_be_seen_is_number_0(given: str) -> None:
    assert as_ordinal(given, LISTING) == "0"


def test_several_slices_are_refused_with_what_to_ask_for() -> None:
    with pytest.raises(SetupError, match=r"names 2 MIG slices.*launcher.trainer.gpus = 1") as caught:
        as_ordinal(f"{SLICE},{OTHER}", LISTING)
    assert "\n" not in str(caught.value)


def test_a_slice_among_other_jobs_slices_is_refused() -> None:
    with pytest.raises(SetupError, match=r"lists 2 MIG slices.*ConstrainDevices.*use whole GPUs"):
        as_ordinal(SLICE, UNCONSTRAINED)


def test_slurms_names_for_other_vendors_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (VARIABLE, "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"):
        monkeypatch.setenv(variable, "0")
    use_given_gpus()
    assert "ROCR_VISIBLE_DEVICES" not in os.environ and os.environ[VARIABLE] == "0"
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "0")
    use_given_gpus()
    assert os.environ["ROCR_VISIBLE_DEVICES"] == "0"  # a machine of that vendor


@pytest.mark.parametrize("given", [None, "", "0", "0,1,2,3", "GPU-8c7c9c30-f12f-20bf-e14e-d3c4c965af32", "NoDevFiles"])
def test_whole_gpus_stay_as_slurm_named_them(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if given is not None:
        monkeypatch.setenv(VARIABLE, given)
    use_given_gpus()
    assert os.environ.get(VARIABLE) == given


def test_a_slice_is_looked_up_on_the_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"  # the boundary: a machine with slices of a GPU
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTING}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv(VARIABLE, SLICE)
    use_given_gpus()
    assert os.environ[VARIABLE] == "0"
    program.write_text("#!/bin/sh\nexit 9\n")
    monkeypatch.setenv(VARIABLE, SLICE)
    with pytest.raises(SetupError, match=r"nvidia-smi -L, which lists MIG slices, failed"):
        use_given_gpus()
