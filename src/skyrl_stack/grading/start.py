"""Start: what the sandbox of a task goes through before anybody works in it.

image ── set-up ──┬── patch and tests                                          the grader's sandbox
                  └── hidden tests and the repository's history away           the agent's sandbox
"""

import secrets
import shlex

from skyrl_stack.errors import SandboxStartFailed
from skyrl_stack.grading.patch import CLEAN, TIMEOUT_S, Start
from skyrl_stack.sandbox.contract import Sandbox
from skyrl_stack.tasks.task import REPOSITORY, Task

# The new repository holds one commit: the tracked files as they are now. Packs cannot be thinned out faster than
# by fetching what that commit needs into a repository of its own. No branch, tag, reflog, stash or remote goes along.
# Nor do the repositories of submodules, which lay in the old one: git passes over their files from now on.
SEAL = """
set -euo pipefail
rm -rf -- {hidden}
cd {repository}
mkdir {directory}
printf '[safe]\\n\\tdirectory = *\\n[user]\\n\\tname = skyrl-stack\\n\\temail = tasks@localhost\\n' > {directory}/config
export GIT_CONFIG_GLOBAL={directory}/config GIT_AUTHOR_DATE={moment} GIT_COMMITTER_DATE={moment}
git add --update
git commit --quiet --allow-empty --no-verify --no-gpg-sign --message=start
git update-ref refs/heads/skyrl-start HEAD
git init --quiet --bare --template= --initial-branch=main {directory}/git
git -C {directory}/git fetch --quiet --depth=1 file://{repository}/.git +refs/heads/skyrl-start:refs/heads/main
rm -rf .git {directory}/git/FETCH_HEAD
mv {directory}/git .git
git config core.bare false
git config core.logAllRefUpdates false
git reset --quiet
git ls-files --stage -z | sed --null-data --quiet 's|^160000 [^\\t]*\\t\\(.*\\)|\\1/.git|p' |
    xargs --null --no-run-if-empty rm -rf --
git rev-parse HEAD > {directory}/commit
git ls-files --others --exclude-standard --directory -z > {directory}/untracked
"""
MOMENT = "2020-01-01T00:00:00Z"


async def set_up(sandbox: Sandbox, task: Task) -> None:
    """Bring the image to the state that the task begins with.

    Raises:
        SandboxStartFailed: the image does not let itself be set up.
        SandboxLost: the sandbox is gone.
    """
    if task.setup:
        await _run(sandbox, task, f"set -e\n{task.setup}")


async def hand_over(sandbox: Sandbox, task: Task) -> Start:
    """Make the sandbox ready for the agent; what the patch is taken against later.

    Raises:
        SandboxStartFailed, SandboxLost: as `set_up`.
    """
    await set_up(sandbox, task)
    if not task.has_history:
        return Start(task.base_commit)
    directory = f"/tmp/start-{secrets.token_hex(8)}"
    await _run(
        sandbox,
        task,
        SEAL.format(directory=directory, repository=REPOSITORY, moment=MOMENT, hidden=shlex.join(task.hidden)),
    )
    commit = (await sandbox.read_file(f"{directory}/commit")).decode().strip()
    untracked = (await sandbox.read_file(f"{directory}/untracked")).decode(errors="surrogateescape").split("\0")
    await sandbox.run(f"rm -rf {directory}", shell="start")
    return Start(commit, tuple(path.rstrip("/") for path in untracked if path))


async def _run(sandbox: Sandbox, task: Task, script: str) -> None:
    done = await sandbox.run(CLEAN + shlex.quote(script), timeout_s=TIMEOUT_S, shell="start")
    if done.exit_code:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.exit_code}"])[-1]
        raise SandboxStartFailed(f"{task.instance_id}: {task.image} cannot be made ready: {said}")
