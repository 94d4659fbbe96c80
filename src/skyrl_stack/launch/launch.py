"""Launch: from a profile's name to a run directory that a backend carries out."""

from collections.abc import Callable, Iterable
from pathlib import Path

from skyrl_stack.errors import ProfileError
from skyrl_stack.launch.local import LocalLaunch
from skyrl_stack.profile import Profile, load_profile
from skyrl_stack.report import print_report
from skyrl_stack.run_directory import RunDirectory

REPOSITORY = Path(__file__).parents[3]


def launch_profile(
    config: str, overrides: Iterable[str], *, resume: bool, run_dir: Path | None, say: Callable[[str], None]
) -> None:
    """Run profile `config` to its end and print the report.

    Raises:
        StackError: in one line; nothing of the launch is left running.
    """
    if run_dir and not resume:
        raise ProfileError("--run-dir names a run to go on with: add --resume, or leave it out")
    profile = load_profile(find_profile(config), overrides)
    directory = _directory(profile, resume=resume, run_dir=run_dir)
    say(f"run directory: {directory.path}")
    try:
        LocalLaunch(directory, profile, say, resume=resume).run()
    finally:
        print_report(directory)
        say(f"more: skyrl-stack report {directory.path} --episodes")


def find_profile(config: str) -> Path:
    """The file that `config` names: a path, or a profile here or in the checkout.

    Raises:
        ProfileError: there is none; lists those that there are.
    """
    if config.endswith(".toml") or "/" in config:
        return Path(config)
    folders = [Path("profiles"), REPOSITORY / "profiles"]
    for folder in folders:
        if (file := folder / f"{config}.toml").is_file():
            return file
    known = sorted({file.stem for folder in folders for file in folder.glob("*.toml")})
    raise ProfileError(f"no profile named {config}; there are: {', '.join(known)}; or give the path of a TOML file")


def _directory(profile: Profile, *, resume: bool, run_dir: Path | None) -> RunDirectory:
    """A new run directory, or the one to resume."""
    if not resume:
        return RunDirectory.create(profile.run.root, profile)
    return RunDirectory.open(run_dir) if run_dir else RunDirectory.latest(profile.run.root, profile.name)
