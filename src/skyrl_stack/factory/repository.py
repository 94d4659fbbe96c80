"""Repository: an sdist as a git repository of exactly one commit, with the same hash on every machine."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from skyrl_stack.errors import SetupError
from skyrl_stack.factory.catalogue import Project

MOMENT = "2020-01-01T00:00:00Z"
IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "skyrl-stack"), ("EMAIL", "tasks@localhost"), ("DATE", MOMENT))
}
WITHOUT_CONFIGURATION = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "GIT_ATTR_NOSYSTEM": "1"}
LEFTOVERS = "__pycache__/\n*.py[cod]\n.pytest_cache/\n.hypothesis/\n"
"What running the tests leaves, and git shall not see."


def unpack(project: Project, sdist: Path, into: Path) -> None:
    """Put the project's files into the directory `into`, which is made.

    Raises:
        SetupError: the tarball is not an sdist of the project.
    """
    staging = into.with_name(f"{into.name}.unpacking")
    with tarfile.open(sdist) as tarball:
        tarball.extractall(staging, filter="data")
    roots = list(staging.iterdir())
    if len(roots) != 1 or not (roots[0] / "PKG-INFO").is_file():
        raise SetupError(f"{sdist}: not an sdist of {project.name} {project.version}")
    roots[0].rename(into)
    staging.rmdir()


def commit(root: Path, project: Project) -> str:
    """Make `root` a repository whose only commit, whose only objects, are the files there; its hash.

    Even what the project's own .gitignore names is committed: an sdist ships generated files that tests need.
    """
    shutil.rmtree(root / ".git", ignore_errors=True)
    git(root, "init", "--quiet", "--template=", "--initial-branch=main")
    git(root, "config", "core.logAllRefUpdates", "false")
    (root / ".git" / "info").mkdir(exist_ok=True)
    (root / ".git" / "info" / "exclude").write_text(LEFTOVERS)
    git(root, "add", "--all", "--force")
    git(root, "commit", "--quiet", "--no-gpg-sign", "--no-verify", f"--message={project.name} {project.version}")
    return git(root, "rev-parse", "HEAD").strip()


def reverse(root: Path, patch: str) -> None:
    """Take `patch` back in the files of `root`: from the sound tree to the buggy one."""
    git(root, "apply", "--reverse", "-", stdin=patch)


def git(root: Path, *arguments: str, stdin: str = "") -> str:
    """Run git in `root` under a fixed identity, date and configuration.

    Raises:
        SetupError: git is missing or refused.
    """
    environment = {**os.environ, **IDENTITY, **WITHOUT_CONFIGURATION, "GIT_CEILING_DIRECTORIES": str(root.parent)}
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):  # set where a git hook started us
        environment.pop(name, None)
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, env=environment, input=stdin.encode(), capture_output=True, check=True
        )
    except FileNotFoundError as error:
        raise SetupError("git is not installed; install the package git") from error
    except subprocess.CalledProcessError as error:
        raise SetupError(f"git {arguments[0]} in {root}: {error.stderr.decode(errors='replace').strip()}") from error
    return done.stdout.decode()
