"""Launch: from a profile's name, or a run to go on with, to a run directory that a backend carries out."""

from collections.abc import Callable, Iterable
from pathlib import Path

from skyrl_stack.errors import PeerLost, ProfileError
from skyrl_stack.launch.frozen import require_images
from skyrl_stack.launch.local import LocalLaunch
from skyrl_stack.launch.plan.plan import plan
from skyrl_stack.launch.plan.survey import survey
from skyrl_stack.launch.slurm.submit import SlurmLaunch
from skyrl_stack.profile import Profile, load_profile, override_profile
from skyrl_stack.report import print_report
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.site import SlurmLauncher

REPOSITORY = Path(__file__).parents[3]
Say = Callable[[str], None]


def launch_profile(
    config: str, overrides: Iterable[str], *, resume: bool, run_dir: Path | None, dry_run: bool, say: Say
) -> None:
    """Launch profile `config`: run it to its end and print the report, or submit it to Slurm and return.

    Raises:
        StackError: in one line; nothing of the launch is left running.
    """
    if run_dir and not resume:
        raise ProfileError("--run-dir names a run to go on with: add --resume, or leave it out")
    profile = load_profile(find_profile(config), overrides)
    _require_usable(profile, dry_run=dry_run, say=say)
    if not resume:
        directory = RunDirectory.create(profile.run.root, profile)
    else:
        directory = RunDirectory.open(run_dir) if run_dir else RunDirectory.latest(profile.run.root, profile.name)
    _launch(directory, profile, resume=resume, dry_run=dry_run, say=say)


def resume_run(directory: RunDirectory, overrides: Iterable[str], *, say: Say) -> None:
    """Go on with a run, with the profile that it has.

    Raises:
        StackError: in one line; nothing of the launch is left running.
    """
    profile = override_profile(directory.profile(), overrides)
    _require_usable(profile, dry_run=False, say=say)
    _launch(directory, profile, resume=True, dry_run=False, say=say)


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


def _require_usable(profile: Profile, *, dry_run: bool, say: Say) -> None:
    if dry_run and profile.launcher.kind != "slurm":
        raise ProfileError("--dry-run shows what would be submitted, but launcher.kind = 'local' submits nothing")
    require_images(profile)
    _greet_runtimes(profile, say)
    planned = plan(profile, survey(profile))
    planned.require_fit()
    for finding in planned.findings:
        if finding.level == "warning":
            say(f"warning: {finding.text}")


def _greet_runtimes(profile: Profile, say: Say) -> None:
    """See that `runtime.urls` are what they should be, before anything waits for a GPU."""
    if not profile.runtime.urls:
        return
    from skyrl_stack.runtime.external import ExternalRuntime  # knows HTTP, which no other launch needs here

    for runtime in ExternalRuntime.all_of(profile.runtime):
        try:
            runtime.greet()
        except PeerLost as error:
            if profile.launcher.kind == "local":
                raise
            say(f"warning: {error} The trainer's job will see from its node")


def _launch(directory: RunDirectory, profile: Profile, *, resume: bool, dry_run: bool, say: Say) -> None:
    say(f"run directory: {directory.path}")
    if profile.run.runtime_only:
        directory.keep_api_key()
    if isinstance(profile.launcher, SlurmLauncher):
        slurm = SlurmLaunch(directory, profile, profile.launcher, say, resume=resume)
        if dry_run:
            return slurm.rehearse()
        slurm.run()
        if profile.run.runtime_only:
            say(f"key: {directory.api_key_file}; `skyrl-stack status` shows the URLs as soon as it serves")
        return say(f"more: skyrl-stack status|logs|stop {directory.path}")
    try:
        LocalLaunch(directory, profile, say, resume=resume).run()
    finally:
        if "trainer" in profile.roles:
            print_report(directory)
            say(f"more: skyrl-stack report {directory.path} --episodes")
