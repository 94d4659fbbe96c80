"""Patch: what an episode changed in the repository, taken out of a sandbox whose git the agent may have changed."""

import secrets
import shlex
from dataclasses import dataclass

from skyrl_stack.grading.protected import protected_pathspecs
from skyrl_stack.sandbox.contract import FileMissing, Sandbox
from skyrl_stack.tasks.task import REPOSITORY, Task

TIMEOUT_S = 120.0
LARGEST_FILE_MB = 4
"Larger files are results of a run, not parts of a fix."
LARGEST_PATCH_MB = 16
"A larger patch is no fix, and would be held in memory by whoever grades it."
LEFTOVERS = (
    "__pycache__/",
    "*.py[cod]",
    ".pytest_cache/",
    ".mypy_cache/",
    ".ruff_cache/",
    ".hypothesis/",
    "*.egg-info/",
)

# A git directory of our own, which only borrows the objects of the repository's: the agent's index, branches, hooks,
# filters, replaced objects, excludes and attributes are then without effect, and none of them is changed. What is
# written last in info/attributes wins over the tree's .gitattributes. git in git would be a submodule: unwrapped.
EXTRACT = r"""
set -euo pipefail
cd {repository}
mkdir -p {directory}
git init --quiet --bare --template= {directory}/git
mkdir -p {directory}/git/info {directory}/git/objects/info
echo {repository}/.git/objects > {directory}/git/objects/info/alternates
echo '* {attributes} -text -ident -filter -working-tree-encoding' > {directory}/git/info/attributes
printf '%s\n' {leftovers} > {directory}/git/info/exclude
export GIT_DIR={directory}/git GIT_WORK_TREE={repository} GIT_INDEX_FILE={directory}/index
git config core.bare false
git read-tree {commit}
find . -mindepth 2 -name .git -prune -exec rm -rf {{}} +
printf '%s\0' . {excluded} > {directory}/pathspecs
find . -name .git -prune -o -type f -size +{largest}M -printf ':(top,exclude,literal)%P\0' >> {directory}/pathspecs
git add --all --pathspec-from-file={directory}/pathspecs --pathspec-file-nul
git diff --cached --binary --full-index --no-color --no-ext-diff --no-textconv --no-renames --ignore-submodules=all \
    {commit} > {directory}/patch
(( $(stat --format=%s {directory}/patch) <= {largest_patch} << 20 ))
"""
CLEAN = (
    "env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/nonexistent LC_ALL=C GIT_CONFIG_GLOBAL=/dev/null "
    "GIT_CONFIG_SYSTEM=/dev/null GIT_ATTR_NOSYSTEM=1 GIT_NO_REPLACE_OBJECTS=1 /bin/bash --noprofile --norc -c "
)


@dataclass(frozen=True)
class Start:
    """What the agent was given."""

    commit: str
    "The only one of its repository."
    untracked: tuple[str, ...] = ()
    "Paths that the image's repository does not know, an environment for one: no part of any patch."


async def extract_patch(sandbox: Sandbox, task: Task, start: Start) -> str:
    """The changes of the working tree against `start`, committed or not, with new and binary files.

    Without what .gitignore names, leftovers of runs, nested repositories' own files, and all that is protected.
    For the end of an episode: it unwraps nested repositories. Empty where the agent destroyed the repository, or
    changed more than any fix does: then it has left none that anybody could apply.

    Raises:
        SandboxLost: the sandbox is gone.
    """
    try:
        return (await _extract(sandbox, task, start, attributes="")).decode()
    except UnicodeDecodeError:
        return (await _extract(sandbox, task, start, attributes="-diff")).decode("ascii")  # every file as base 85


async def _extract(sandbox: Sandbox, task: Task, start: Start, *, attributes: str) -> bytes:
    directory = f"/tmp/patch-{secrets.token_hex(8)}"
    given = [f":(top,exclude,literal){path}" for path in start.untracked]
    script = EXTRACT.format(
        repository=REPOSITORY,
        directory=directory,
        commit=shlex.quote(start.commit),
        attributes=attributes,
        leftovers=shlex.join(LEFTOVERS),
        excluded=shlex.join([*protected_pathspecs(task, exclude=True), *given]),
        largest=LARGEST_FILE_MB,
        largest_patch=LARGEST_PATCH_MB,
    )
    # Its own shell: aliases and functions of the agent's are not there.
    done = await sandbox.run(CLEAN + shlex.quote(script), timeout_s=TIMEOUT_S, shell="extract")
    try:
        return await sandbox.read_file(f"{directory}/patch") if done.exit_code == 0 else b""
    except FileMissing:
        return b""
