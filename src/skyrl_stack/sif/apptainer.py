"""Apptainer, called as a program: spython's build and run lose errors, so of it only `inspect` is used."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from skyrl_stack.errors import SetupError

OLDEST = (1, 2)
_SAID: Mapping[str, str] = {
    r"no space left on device": "the disk of {tmp} is full; set TMPDIR to a node-local directory with more room",
    r"no such host|name resolution|could not resolve|dial tcp|Network is unreachable|Could not connect": (
        "no way to the network ({line}); build where there is one, or from a file: --from oci-archive:BASE.tar"
    ),
    r"exec format error|image targets": "the base is for another architecture than this machine's {machine} ({line})",
    r"fakeroot command not found|no mapping entry|user namespace|newuidmap": (
        "no right to be root in a build ({line}); ask for entries in /etc/subuid and /etc/subgid, or for `fakeroot`"
    ),
    r"permitted 0x|set capabilit": "not as root of this machine ({line}); build as an ordinary user",
}
"What a failed build may say, and what to make of it."


def require() -> str:
    """Version of the Apptainer on PATH.

    Raises:
        SetupError: there is none, or one that is too old.
    """
    if shutil.which("apptainer") is None:
        raise SetupError("apptainer: not found; load its module, or ask for it to be installed")
    said = subprocess.run(["apptainer", "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"(\d+)\.(\d+)[.\w-]*", said)
    if version is None or (int(version[1]), int(version[2])) < OLDEST:
        raise SetupError(f"apptainer {said.strip() or 'of unknown version'}: 1.2 or newer is needed")
    return version[0]


def build(
    definition: Path,
    result: Path,
    *,
    context: Path,
    arguments: Mapping[str, str],
    root: Path,
    tmp: Path,
    say: Callable[[str], None],
) -> None:
    """Build `definition` of the directory `root` into `result`; the build sees `context` at /mnt.

    Raises:
        SetupError: it failed; one line, and the whole output in `result` with the suffix .log.
    """
    command = ["apptainer", "build", "--fakeroot", "--force", "--bind", f"{context}:/mnt:ro"]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    command += ["--mksquashfs-args", "-comp zstd -Xcompression-level 3", str(result), str(definition)]
    environment = os.environ | {"APPTAINER_TMPDIR": str(tmp), "SOURCE_DATE_EPOCH": "0"}
    lines: list[str] = []
    with (
        result.with_suffix(".log").open("w") as log,
        subprocess.Popen(
            command, cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        for line in process.stdout or ():
            log.write(line)
            lines.append(line.strip())
            if step := _step(line):
                say(step)
    if process.returncode:
        raise SetupError(f"{definition}: {_reason(lines, tmp)}; all of it is in {result.with_suffix('.log')}")


def read(image: Path, *files: str) -> list[str]:
    """Content of text files in `image`.

    Raises:
        SetupError: the image cannot be opened, or has no such file.
    """
    command = ["apptainer", "-q", "exec", "--contain", str(image), "cat"]
    texts = []
    for file in files:
        answer = subprocess.run([*command, file], capture_output=True, text=True, check=False)
        if answer.returncode:
            raise SetupError(f"{image}: cannot read {file} of it: {_last(answer.stderr.splitlines())}")
        texts.append(answer.stdout)
    return texts


def labels(image: Path) -> dict[str, str]:
    """The labels of `image`.

    Raises:
        SetupError: it is not an image.
    """
    from spython.main import get_client

    if not image.is_file():
        raise SetupError(f"{image}: no such file")
    client: Any = get_client(quiet=True)
    answer = client.inspect(str(image), quiet=True)
    if "attributes" not in answer:
        raise SetupError(f"{image}: not an image: {_last(str(answer.get('message', '')).splitlines())}")
    return answer["attributes"]["labels"]


def _step(line: str) -> str | None:
    """A line of the build that says how far it is."""
    text = line.strip()
    if text.startswith("install: "):
        return text.removeprefix("install: ")
    return (
        text.removeprefix("INFO:").strip()
        if re.match(r"INFO: +(Creating SIF|Running post|Starting build)", text)
        else None
    )


def _reason(lines: Sequence[str], tmp: Path) -> str:
    said = [line for line in lines if line]
    for pattern, meaning in _SAID.items():
        for line in reversed(said[-60:]):
            if re.search(pattern, line, re.IGNORECASE):
                return meaning.format(line=line[:200], tmp=tmp, machine=os.uname().machine)
    return _last([line for line in said if line.startswith("FATAL")] or said)


def _last(lines: Sequence[str]) -> str:
    return lines[-1].removeprefix("FATAL:").strip()[:300] if lines else "it said nothing"
