"""Apptainer, called as a program: spython's build and run lose errors, so of it only `inspect` is used."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from skyrl_stack.errors import SetupError

OLDEST = (1, 2)
_SAID: Mapping[str, str] = {
    r"no space left on device|disk quota exceeded": (
        "the disk of {tmp} is full; set TMPDIR to a node-local directory with more room"
    ),
    r"failure resolving|could not resolve|name resolution|no such host|dial tcp|network is unreachable"
    r"|could not connect|failed getting release file|dns error": (
        "no way to the network ({line}); build where there is one, or from a file: --from oci-archive:BASE.tar"
    ),
    r"exec format error|image targets|image's architecture": (
        "the base is for another architecture than this machine's {machine} ({line})"
    ),
    r"fakeroot command not found|no mapping entry|user namespace|newuidmap|failed to change uid|setgroups|seteuid": (
        "no right to be root in a build ({line}); ask for entries in /etc/subuid and /etc/subgid, or for `fakeroot`"
    ),
    r"permitted 0x|set capabilit": "not as root of this machine ({line}); build as an ordinary user",
    r"not listed in /etc/subuid": (
        "few bases build without sub-ids ({line}); ask for entries in /etc/subuid and /etc/subgid"
    ),
}
"What a failed build may say, and what to make of it."
_SUMMARY = re.compile(r"^FATAL:.*(exit status \d+|signal: \w+)$")
"How Apptainer ends what a script of the definition has said before."


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
    log: Path,
    context: Path,
    wheels: Path,
    arguments: Mapping[str, str],
    root: Path,
    tmp: Path,
    say: Callable[[str], None],
) -> None:
    """Build `definition` of the directory `root` into `result`; the build sees `context` at /mnt, and fills
    `wheels`, uv's cache, at /mnt/wheels.

    Raises:
        SetupError: it failed; one line, and the whole output is in `log`.
    """
    command = ["apptainer", "build", "--fakeroot", "--force", "--bind", f"{context}:/mnt:ro"]
    command += ["--bind", f"{wheels}:/mnt/wheels"]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    command += ["--mksquashfs-args", "-comp zstd -Xcompression-level 3", str(result), str(definition)]
    environment = os.environ | {"APPTAINER_TMPDIR": str(tmp), "SOURCE_DATE_EPOCH": "0"}
    lines: list[str] = []
    with (
        log.open("w", buffering=1) as copy,
        subprocess.Popen(
            command, cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                copy.write(line)
                lines.append(line.strip())
                if step := _step(line):
                    say(step)
        except BaseException:
            process.terminate()  # it removes what it has unpacked
            raise
    if process.returncode:
        raise SetupError(f"{definition}: {reason(lines, tmp)}; all of it is in {log}")


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
            raise SetupError(f"{image}: cannot read {file} of it: {last(answer.stderr.splitlines())}")
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
        raise SetupError(f"{image}: not an image: {last(str(answer.get('message', '')).splitlines())}")
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


def reason(lines: Iterable[str], tmp: Path) -> str:
    """Why a build with its temporary files in `tmp` failed that printed `lines`."""
    said = [line for line in lines if line]
    telling = [*said[:3], *said[-60:]]  # in between are troubles that were overcome
    for pattern, meaning in _SAID.items():
        for line in reversed(telling):
            if re.search(pattern, line, re.IGNORECASE):
                return meaning.format(line=line[:200], tmp=tmp, machine=os.uname().machine)
    return last([line for line in said if not _SUMMARY.match(line)] or said)


def last(lines: Sequence[str]) -> str:
    """What a program said at last, for a person to read."""
    return lines[-1].removeprefix("FATAL:").strip()[:300] if lines else "it said nothing"
