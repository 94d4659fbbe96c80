"""Profile: one typed TOML file that says everything about a run, and the first thing in the flow.

People write TOML; `load_profile` merges `--set a.b=c` and the cluster's own file, and validates; machines write the
result as JSON into the run directory, where both roles read it. An unknown key, a wrong unit or an impossible size is a
`ProfileError` of one line that names the file, the key and the remedy.
"""

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from skyrl_stack.agent_section import AgentSection
from skyrl_stack.errors import ProfileError
from skyrl_stack.runtime_section import RuntimeSection
from skyrl_stack.section import Section, explain, read_toml
from skyrl_stack.site import Launcher, LocalLauncher, SlurmLauncher, beneath, load_site

SITE_VARIABLE = "SKYRL_SITE"
"Names the site for whoever does not want to write it into profiles: over the profile, under `--set site=`."


Role = Literal["runtime", "trainer"]
Strategy = Literal["line", "call", "branch", "block", "pair"]
Help = Literal["place", "tests", "symptom"]


class RunSection(Section):
    root: Path = Path(".skyrl_jobs")
    "Directory that holds the run directories; relative to where the launch is typed."
    peer_timeout_s: float = Field(default=30.0, ge=5)
    "A role whose heartbeat has not changed for this long counts as lost."
    start_timeout_s: float = Field(default=300.0, ge=10)
    "How long one role waits for the other to appear."
    requeue: bool = True
    "Slurm: what is preempted, loses its node or reaches its time limit waits in the queue again, and the run goes on."
    hold_s: float = Field(default=600.0, ge=0)
    "Slurm: how long a role keeps its node while the other waits in the queue again; then it waits there, too."
    notice_s: int = Field(default=300, ge=60, le=21600)
    "Slurm: how long before its time limit the trainer is asked to save and leave; longer than a step is best."
    max_requeues: int = Field(default=3, ge=1)
    "Slurm: so often in a row may the trainer be requeued without having finished a step."
    runtime_only: bool = False
    "Serve sandboxes to trainers of other launches, until stopped or at the time limit; start no trainer."

    @property
    def is_requeued(self) -> bool:
        """A runtime alone is not: it would answer under another address, of which its users know nothing."""
        return self.requeue and not self.runtime_only


class TasksSection(Section):
    projects: tuple[str, ...] = ("inflection", "parse", "toolz")
    "PyPI projects, of the factory's catalogue, from which tasks are made."
    per_project: int = Field(default=2, ge=1, le=500)
    "Tasks per project."
    strategies: tuple[Strategy, ...] = Field(default=("line",), min_length=1)
    "Kinds of bugs, by turns: a slip in a `line` or a `call`, a missing `branch`, a `block` of statements, a `pair`."
    help: Help = "place"
    "What a problem statement gives away: the `place` and the failing tests, the `tests` alone, or only a `symptom`."
    seed: int = Field(default=0, ge=0)
    file: Path | None = None
    "A task file (JSON lines) to use instead of making tasks; its images must be obtainable."
    pull: bool = True
    "Fetch images that the site's store lacks from their registry; false where that is for `skyrl-stack images` to do."
    unverified: bool = False
    "Train on tasks of `file` that `skyrl-stack tasks verify` has not seen. Quarantined ones stay out all the same."
    base_image: str = "auto"
    "Base of the factory's images: a reference, `debootstrap`, or `auto` (a reference if it can be pulled)."


class GradingSection(Section):
    timeout_s: float = Field(default=300.0, gt=0)
    "Wall time of the tests of one grade."


class ModelSection(Section):
    path: str = "tiny"
    "`tiny` (made here, for CPU), a directory, or a Hub name."
    seed: int = Field(default=0, ge=0)
    sft_steps: int = Field(default=300, ge=0)
    "Supervised steps on scripted traces that give the tiny model its start."
    context_tokens: int = Field(default=2048, ge=256)
    "Prompt and response together; an episode that reaches it ends with the outcome ContextExceeded."


class TrainerSection(Section):
    device: Literal["cpu", "cuda"] = "cpu"
    steps: int = Field(default=2, ge=1)
    "GRPO updates in all, resumed ones included."
    tasks_per_step: int = Field(default=2, ge=1)
    rollouts_per_task: int = Field(default=4, ge=2)
    "Episodes of one task per step: a GRPO group."
    concurrent_episodes: int = Field(default=4, ge=1)
    "Over all nodes."
    tensor_parallel: int = Field(default=1, ge=1, le=16)
    "GPUs, of one node, that hold one copy of the model during rollouts."
    mode: Literal["sync", "colocate_async"] = "sync"
    "verl's: a step waits for all of its episodes, or takes the groups that end first while others go on after it."
    learning_rate: float = Field(default=1e-4, gt=0)
    save_every: int = Field(default=1, ge=1)
    "Steps between checkpoints."
    max_consecutive_failures: int = Field(default=8, ge=1)
    "Infrastructure failures in a row after which the run stops with their cause."
    seed: int = Field(default=1, ge=0)
    project: str = "skyrl-stack"
    "W&B project; offline unless W&B's own variables say otherwise."
    verl: dict[str, Any] = Field(default_factory=dict)
    "verl's own options, passed through: a table of `dotted.key = value`."


class ImagesSection(Section):
    """The frozen images that the roles run in; without one, a role runs in the Python environment of the launch."""

    runtime: Path | None = None
    trainer: Path | None = None
    unlocked: bool = False
    "Run images that containers/images.lock does not describe."

    def of(self, role: Role) -> Path | None:
        return self.runtime if role == "runtime" else self.trainer

    @property
    def files(self) -> list[Path]:
        """Absolute paths of those there are."""
        return [image.absolute() for image in (self.runtime, self.trainer) if image]


class Profile(Section):
    """A resolved profile. Defaults are those of `profiles/local.toml`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
    site: str | None = None
    "The cluster: a name in `sites/`, or the path of a TOML file. What it says of `[launcher]`, the profile need not."
    run: RunSection = RunSection()
    tasks: TasksSection = TasksSection()
    runtime: RuntimeSection = RuntimeSection()
    agent: AgentSection = AgentSection()
    grading: GradingSection = GradingSection()
    model: ModelSection = ModelSection()
    trainer: TrainerSection = TrainerSection()
    images: ImagesSection = ImagesSection()
    launcher: Launcher = LocalLauncher()

    @property
    def roles(self) -> tuple[Role, ...]:
        """Those that a launch starts, in this order."""
        if self.run.runtime_only:
            return ("runtime",)
        return ("trainer",) if self.runtime.urls else ("runtime", "trainer")

    @property
    def is_coupled(self) -> bool:
        """Whether a launch starts both roles, which then live and die together."""
        return len(self.roles) > 1

    @property
    def goes_on(self) -> bool:
        """Whether a role whose job was taken away may be back."""
        return self.launcher.kind == "slurm" and self.run.is_requeued

    @model_validator(mode="after")
    def _has_a_role(self) -> Self:
        if self.run.runtime_only and self.runtime.urls:
            raise ValueError("run.runtime_only starts a runtime, runtime.urls uses others: only one of them works")
        return self

    @model_validator(mode="after")
    def _has_tasks(self) -> Self:
        if self.runtime.podman_socket and not self.tasks.file:
            raise ValueError(
                "runtime.podman_socket: the Podman behind it makes no tasks; name a file of them by tasks.file"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.is_coupled and self.trainer.concurrent_episodes > self.sandboxes:
            nodes = f" on each of {self.runtime_nodes} nodes" if self.runtime_nodes > 1 else ""
            raise ValueError(
                f"trainer.concurrent_episodes = {self.trainer.concurrent_episodes} needs as many sandboxes, but "
                f"runtime.max_sandboxes = {self.runtime.max_sandboxes}{nodes}: raise the second or lower the first"
            )
        if isinstance(self.launcher, SlurmLauncher) and 2 * self.run.notice_s > self.launcher.trainer.time_limit_s:
            raise ValueError(
                f"run.notice_s = {self.run.notice_s} is over half of launcher.trainer.time_limit = "
                f"{self.launcher.trainer.time_limit}: lower the first or raise the second"
            )
        return self

    @property
    def runtime_nodes(self) -> int:
        return self.launcher.runtime.nodes if isinstance(self.launcher, SlurmLauncher) else 1

    @property
    def sandboxes(self) -> int:
        """Alive at once on all nodes together."""
        return self.runtime_nodes * self.runtime.max_sandboxes


def load_profile(path: Path, overrides: Iterable[str] = ()) -> Profile:
    """Read a TOML profile, apply `a.b=c` overrides in order, put its site's values beneath, and validate.

    Raises:
        ProfileError: one line naming the file, the key and the remedy.
    """
    if not path.is_file():
        raise ProfileError(f"{path}: no such profile; `ls profiles/` shows those that ship")
    table = read_toml(path)
    table.setdefault("name", path.stem)
    if site := os.environ.get(SITE_VARIABLE):
        table["site"] = site
    _override(table, overrides)
    _add_site(table, path)
    return _validated(table, source=str(path))


def override_profile(profile: Profile, overrides: Iterable[str]) -> Profile:
    """Apply `a.b=c` overrides to a resolved profile. Its site's values are in it already.

    Raises:
        ProfileError: one line naming the key and the remedy.
    """
    table = profile.model_dump(mode="json")
    _override(table, overrides)
    source = f"profile {profile.name}"
    if table["site"] != profile.site:
        raise ProfileError(f"{source}: site = {table['site']!r}: a run stays where it began; override keys of launcher")
    return _validated(table, source=source)


def _add_site(table: dict[str, Any], path: Path) -> None:
    """Put what the site says beneath what the profile says of `[launcher]`."""
    launcher, site = table.get("launcher"), table.get("site")
    if not isinstance(launcher, dict) or not isinstance(site, str) or launcher.get("kind") != "slurm":
        return
    try:
        table["launcher"] = beneath(launcher, load_site(site, path.parent / "sites"))
    except ProfileError as error:
        raise ProfileError(f"{path}: {error}") from error


def _validated(table: dict[str, Any], *, source: str) -> Profile:
    try:
        return Profile.model_validate(table)
    except ValidationError as error:
        raise ProfileError(f"{source}: {explain(error, Profile)}") from error


def _override(table: dict[str, Any], overrides: Iterable[str]) -> None:
    for override in overrides:
        _apply(table, override)


def _apply(table: dict[str, Any], override: str) -> None:
    """Set one `a.b=c`; the value is TOML, or a bare string where it is not."""
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ProfileError(f"--set {override}: write it as section.key=value")
    section, _, verl_key = key.partition("trainer.verl.")
    parts = ["trainer", "verl", verl_key] if verl_key and not section else key.split(".")
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ProfileError(f"--set {override}: {part} is a value, not a section")
    table[parts[-1]] = _value(text)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
