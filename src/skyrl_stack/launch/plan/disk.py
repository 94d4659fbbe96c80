"""Disk and files: checkpoints, episodes and logs in the run directory, images on the runtime's nodes."""

from collections.abc import Iterator

from skyrl_stack.launch.plan.findings import Finding, Need, gb
from skyrl_stack.launch.plan.survey import Survey
from skyrl_stack.profile import Profile
from skyrl_stack.site import SlurmLauncher
from skyrl_stack.trainer.options import users_options
from skyrl_stack.trainer.ranks import Ranks

CHECKPOINT_BYTES_PER_PARAMETER = 12
"Weights and Adam's two moments in float32, of which verl's FSDP checkpoint consists."
MADE_HERE = "tiny"
"`model.path` of a model whose size is of no account."
EPISODE_FILES = 2
"Its record and its trajectory."
EPISODE_BYTES_PER_TOKEN = 30
"Of a trajectory: token, mask and log-probability as JSON. Seen: 22 to 28."
CHECKPOINT_FILES_PER_RANK = 3
IMAGE_BYTES = {"made": 0.6e9, "given": 3e9}
"Of one task's image on a node: the factory's share their base; those of published data sets hardly do."

_KEEP = "trainer.max_actor_ckpt_to_keep"


def disk(profile: Profile, survey: Survey) -> Iterator[Need | Finding]:
    """What a run leaves in its directory, and what its nodes hold meanwhile."""
    trainer, ranks = profile.trainer, Ranks.of(profile)
    episodes = trainer.steps * trainer.tasks_per_step * trainer.rollouts_per_task
    trajectories = episodes * profile.model.context_tokens * EPISODE_BYTES_PER_TOKEN
    saves = -(-trainer.steps // trainer.save_every)
    saves = min(saves, users_options(profile).get(_KEEP) or saves)
    parameters = survey.parameters or (survey.shape.parameters if survey.shape else None)
    one = (parameters or 0) * CHECKPOINT_BYTES_PER_PARAMETER
    free = gb(survey.free_bytes) if survey.free_bytes is not None else ""
    yield Need("disk: episodes", f"{gb(trajectories)} at most ({episodes} of them)", f"{free} free for run.root")
    if parameters is None and profile.model.path != MADE_HERE:
        yield Finding(
            "note",
            f"model.path = {profile.model.path}: its config.json is not on this machine; its memory, checkpoints and "
            "time are not checked",
        )
    elif parameters:
        yield Need("disk: checkpoints", f"{gb(saves * one)} ({saves} × {gb(one)})", "the same")
        yield from _room(profile, survey, saves, one, trajectories)
    yield from _files(survey, EPISODE_FILES * episodes + saves * CHECKPOINT_FILES_PER_RANK * ranks.total)


def _room(profile: Profile, survey: Survey, saves: int, one: float, rest: float) -> Iterator[Finding]:
    if survey.free_bytes is None or saves * one + rest <= survey.free_bytes:
        return
    fitting = int(max(0, survey.free_bytes - rest) // one) if one else 0
    is_fixed = _KEEP in users_options(profile)
    works = -(-profile.trainer.steps // fitting) if fitting and not is_fixed else None
    remedy = f"trainer.save_every = {works} fits" if works else "free some space"
    yield Finding(
        "error",
        f"{saves} checkpoints of {gb(one)} do not fit the {gb(survey.free_bytes)} free for run.root, beside the "
        f"episodes' {gb(rest)}: {remedy}",
    )


def _files(survey: Survey, files: int) -> Iterator[Need | Finding]:
    free = survey.free_files
    yield Need("files", str(files), f"{free} more can be made" if free is not None else "")
    if free is not None and files > free:
        yield Finding("error", f"the run makes {files} files, but only {free} more can be made for run.root: move it")


def images(profile: Profile) -> Iterator[Need]:
    """Each node may come to hold all images; none is removed from it during a run."""
    tasks, launcher = profile.tasks, profile.launcher
    if tasks.file is not None or not isinstance(launcher, SlurmLauncher):
        return
    count = len(tasks.projects) * tasks.per_project
    where = f"of {launcher.scratch or 'its temporary directory'}"
    yield Need("images on a runtime node", f"about {gb(count * IMAGE_BYTES['made'])} ({count} tasks)", where)
