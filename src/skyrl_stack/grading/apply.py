"""Apply: puts a patch into the fresh repository as swebench does, then restores what decides how tests run."""

import re
import secrets
import shlex

from skyrl_stack.grading.patch import CLEAN, TIMEOUT_S
from skyrl_stack.grading.protected import protected_pathspecs
from skyrl_stack.sandbox.contract import Sandbox
from skyrl_stack.tasks.task import REPOSITORY, Task

WAYS = (
    "git apply --verbose",
    "git apply --verbose --3way",
    "git apply --verbose --reject",
    "patch --batch --forward --fuzz=5 -p1 -i",
)
"Source: swebench 5, harness/run_evaluation.py: GIT_APPLY_CMDS, with its clean-up between them and its last check."

# What git does not know and yet decides how tests run, the image's hidden tests first, comes back as it was. Two things
# are too large for that, and a patch that has touched them does not apply: an environment in the repository, and
# .git, where hooks would run. git refuses paths into .git, but patch(1) follows a symbolic link of the patch's own.
APPLY = """
cd {repository}
clean() {{ git checkout --quiet -- . ; git clean --quiet -fd -- . "${{given[@]/#/:(exclude,literal)}}"; }}
by_another_way() {{
    mapfile -d '' -t given < <(git ls-files --others --exclude-standard --directory -z)
    given=("${{given[@]%/}}")
    {others}
    clean; before=$(state .git)
    {last} {file}; status=$?
    [ "$before" = "$(state .git)" ] || exit 1
    [ "$status" = 0 ] || git apply --check --reverse {file}
}}
state() {{ find "$@" -printf '%p %i %s %C@\\n' | sort | sha256sum; }}
shopt -s nullglob dotglob
environments=(*/bin/python)
environments=("${{environments[@]%/bin/python}}")
[ -z "${{environments[*]}}" ] || as_it_was=$(state "${{environments[@]}}")
{{
    git ls-files --others -z -- {protected}
    for path in {hidden}; do [ ! -e "$path" ] || printf '%s\\0' "$path"; done
}} > {file}.kept
[ ! -s {file}.kept ] || tar --create --absolute-names --null --files-from={file}.kept --file={file}.tar || exit 1
# The first way changes all or nothing, and no index.
{first} {file} || {{ by_another_way && git reset --quiet; }} || exit 1
[ -z "${{environments[*]}}" ] || [ "$as_it_was" = "$(state "${{environments[@]}}")" ] || exit 1
for path in {hidden}; do rm -rf -- "$path"; done
git clean --quiet -fdx -- {protected}
git diff -z --name-only HEAD -- {protected} | xargs --null --no-run-if-empty git checkout --quiet HEAD --
[ ! -s {file}.kept ] || tar --extract --absolute-names --file={file}.tar
"""
_HEADER = r"(?:\+\+\+|---|\*\*\*|Index:|diff --git|(?:rename|copy) to)"
_GIT_DIRECTORY = re.compile(rf"^{_HEADER}\s(?:.*[\s/\"])?\.git(?:[/\s]|$)", re.MULTILINE | re.IGNORECASE)


def enters_git_directory(patch: str) -> bool:
    """Whether a patch would write into .git, which git itself refuses but patch(1) does not: hooks would run."""
    return _GIT_DIRECTORY.search(patch) is not None


async def apply_patch(sandbox: Sandbox, task: Task, patch: str) -> bool:
    """Whether one of swebench's ways applied `patch`. Protected files are then those of the image.

    Raises:
        SandboxLost: the sandbox is gone.
    """
    file = f"/tmp/patch-{secrets.token_hex(8)}.diff"
    await sandbox.write_file(file, patch.encode())
    first, *others, last = WAYS
    script = APPLY.format(
        repository=REPOSITORY,
        file=file,
        first=first,
        others="\n    ".join(f"clean; {way} {file} && return" for way in others),
        last=last,
        protected=shlex.join(protected_pathspecs(task)),
        hidden=shlex.join(task.hidden),
    )
    done = await sandbox.run(CLEAN + shlex.quote(script), timeout_s=TIMEOUT_S)
    return done.exit_code == 0
