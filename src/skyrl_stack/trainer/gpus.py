"""The GPUs that Slurm gave the trainer on one node, as CUDA, Ray and vLLM want to be told of them.

A MIG slice has a UUID, by which Slurm names it. vLLM 0.24 takes the number of a slice for that of a GPU
(`device_control_id_to_physical_device_id`), so a slice is called 0: it must be the only one that the job can see. Two
slices of a GPU are one and the same to NCCL, which refuses them ("Duplicate GPU detected").
"""

import os
import re
import subprocess

from skyrl_stack.errors import SetupError

VARIABLE = "CUDA_VISIBLE_DEVICES"
_OTHER_VENDORS = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"Slurm may name the GPUs for every vendor's library at once, which verl refuses."
_SLICE = re.compile(r"\(UUID:\s*(MIG-[^)\s]+)\s*\)")


def use_given_gpus() -> None:
    """Set the variables that name the GPUs to this process and its children to what they can work with.

    Raises:
        SetupError: they cannot work with what Slurm gave; says what to ask for instead.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        return
    for variable in _OTHER_VENDORS:
        os.environ.pop(variable, None)
    if "MIG-" in given:
        os.environ[VARIABLE] = as_ordinal(given, _list_gpus())


def as_ordinal(given: str, listing: str) -> str:
    """The one MIG slice in `given`, the value of CUDA_VISIBLE_DEVICES, by its number.

    Args:
        given: comma-separated, with a MIG slice in it.
        listing: output of `nvidia-smi -L`.

    Raises:
        SetupError: there are several slices, or other jobs' slices can be seen.
    """
    count = len(given.split(","))
    if count > 1:
        raise SetupError(
            f"{VARIABLE} names {count} MIG slices, and NCCL connects GPUs but not slices of one: ask for one slice a "
            "node (launcher.trainer.gpus = 1, more launcher.trainer.nodes), a larger slice "
            "(launcher.trainer.gpu_type), or whole GPUs"
        )
    visible = _SLICE.findall(listing)
    if len(visible) > 1:
        raise SetupError(
            f"{VARIABLE} = {given}, but nvidia-smi lists {len(visible)} MIG slices, so Slurm does not keep jobs from "
            "other jobs' slices (ConstrainDevices in its cgroup.conf), and vLLM would take the first: use whole GPUs"
        )
    return "0"


def _list_gpus() -> str:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], text=True, capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise SetupError(f"nvidia-smi -L, which lists MIG slices, failed: {error}") from error
    return done.stdout
