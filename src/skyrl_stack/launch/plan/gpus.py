"""What is known of a GPU by the name that Slurm has for its type."""

import re
from dataclasses import dataclass

GIB = 2**30
_KNOWN = {  # memory in GiB, dense bfloat16 FLOP/s, bytes/s of its memory: the vendor's data sheets
    "b200": (180, 2250e12, 8.0e12),
    "h200": (141, 989e12, 4.8e12),
    "h100": (80, 989e12, 3.35e12),
    "a100": (40, 312e12, 1.55e12),
    "l40s": (48, 362e12, 0.86e12),
    "a40": (48, 150e12, 0.70e12),
    "v100": (32, 125e12, 0.90e12),
}
_USABLE = 0.985
"Of the memory in the name: what the driver keeps for itself is not to be had."


@dataclass(frozen=True)
class Gpu:
    """One GPU, or one slice of one."""

    name: str
    memory: float
    "Bytes."
    flops: float | None = None
    "bfloat16 operations a second at best."
    bandwidth: float | None = None
    "Bytes a second of its memory at best."


def gpu_of(name: str, memory_gb: float | None = None) -> Gpu | None:
    """The GPU of type `name`, as `h100`, `nvidia_a100_80gb_pcie` or the slice `nvidia_a100_3g.20gb`.

    `memory_gb` wins over what the name says, and that over what is usual. None where all of them are silent.
    """
    known = next((values for kind, values in _KNOWN.items() if kind in name.lower()), None)
    in_name = re.search(r"(\d+)\s?gb", name.lower())
    size = memory_gb or (float(in_name[1]) if in_name else None) or (known[0] if known else None)
    if size is None:
        return None
    slice_of = re.search(r"(\d)g\.\d+gb", name.lower())
    share = int(slice_of[1]) / 7 if slice_of else 1.0
    flops, bandwidth = (known[1] * share, known[2] * share) if known else (None, None)
    return Gpu(name, size * GIB * _USABLE, flops, bandwidth)
