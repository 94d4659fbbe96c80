"""Recipe: how the tests of a repository are run, for the rows that do not bring an eval script of their own."""

import re
import shlex
import tomllib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict

from skyrl_stack.tasks.task import REPOSITORY

NO_TESTS = (".json", ".png", ".csv", ".txt", ".md", ".jpg", ".jpeg", ".pkl", ".yml", ".yaml", ".toml")
"Files of a test patch that are data. Source: swebench 4.1, harness/constants: NON_TEST_EXTS."
START = ">>>>> Start Test Output"
CANARY = "test_must_fail.py"
CONDA = ("source /opt/miniconda3/bin/activate", "conda activate testbed")
"Every image of the SWE-bench family holds its packages in this environment."

SCRIPT = """\
#!/bin/bash
set -uxo pipefail
cd {repository}
{before}
{put_tests}
: '>>>>> Start Test Output'
{command}
: '>>>>> End Test Output'
{take_tests}
"""


class Recipe(BaseModel):
    """An entry of `recipes.toml`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    parser: str
    names: Literal["files", "modules", "cases"] = "files"
    before: tuple[str, ...] = ()


def recipe_of(repo: str) -> Recipe:
    """The recipe of a repository; a repository that is not listed has the default one, pytest."""
    return _recipes().get(repo) or _recipes()[""]


@cache
def _recipes() -> dict[str, Recipe]:
    table = tomllib.loads(resources.files(__package__).joinpath("recipes.toml").read_text())
    return {"": Recipe(**table["default"])} | {repo: Recipe(**entry) for repo, entry in table["repositories"].items()}


def eval_script(recipe: Recipe, *, base_commit: str, test_patch: str) -> str:
    """A script that puts the tests of `test_patch` in, runs them and takes them out. Idempotent; needs no network."""
    known, new = files_of(test_patch)
    take = [f"git checkout {base_commit} -- {shlex.join(known)}"] if known else []
    take += [f"rm -f -- {shlex.join(new)}"] if new else []
    put = f"git apply -v - <<'END_OF_TEST_PATCH'\n{test_patch.rstrip()}\nEND_OF_TEST_PATCH"
    return SCRIPT.format(
        repository=REPOSITORY,
        before="\n".join((*CONDA, *recipe.before)),
        put_tests="\n".join((*take, put)),
        command=f"{recipe.command} {_names(recipe, [*known, *new], test_patch)}",
        take_tests="\n".join(take),
    )


def eval_script_of_files(command: str, files: Sequence[str]) -> str:
    """A script that runs tests that the image holds, as they are in its first commit."""
    return SCRIPT.format(
        repository=REPOSITORY,
        before="\n".join(CONDA),
        put_tests=f"git checkout HEAD -- {shlex.join(files)}",
        command=f"{command} {shlex.join(files)}",
        take_tests=":",
    )


def with_canary(script: str) -> tuple[str, str]:
    """`script`, and the id of a test that it also runs and that must fail; none where pytest does not run the tests.

    Without it, a patch that makes pytest pass every test would be believed.
    """
    head, start, rest = script.partition(f": '{START}'\n")
    command, line_end, tail = rest.partition("\n")
    if not start or not re.search(r"(^|[\s/])pytest(\s|$)", command) or re.search(r"\s-k\s", command):
        return script, ""
    write = f"echo 'def test_must_fail(): assert False' > {CANARY}\n"
    return f"{head}{write}{start}{command} {CANARY}{line_end}{tail}", f"{CANARY}::test_must_fail"


def files_of(patch: str) -> tuple[list[str], list[str]]:
    """Files that a patch of git's form finds in the repository, and files that it makes."""
    known: list[str] = []
    new: list[str] = []
    for section in re.split(r"^(?=diff --git )", patch, flags=re.MULTILINE):
        if header := re.match(r"diff --git a/(.+?) b/(.+)", section):
            head = section.partition("\n@@")[0]
            (new if "\nnew file mode" in head or "\n--- /dev/null" in head else known).append(header[1])
            if header[1] != header[2]:
                new.append(header[2])
    return known, new


def _names(recipe: Recipe, files: list[str], test_patch: str) -> str:
    if recipe.names == "cases":
        cases = dict.fromkeys(re.findall(r"\[case ([^\]]+)\]", test_patch))
        return shlex.quote(" or ".join(cases))
    files = [file for file in files if not file.endswith(NO_TESTS)]
    if recipe.names == "modules":
        files = [file.removesuffix(".py").removeprefix("tests/").replace("/", ".") for file in files]
    return shlex.join(files)
