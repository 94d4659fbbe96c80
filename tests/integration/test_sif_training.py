"""A training with both roles inside their images: as two processes of this machine, and as two jobs of a real Slurm."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import slurm_site
from slurm_cluster import missing, running_cluster

from frozen_site import Site
from lanes import cannot_run
from skyrl_stack.report import read_episodes, read_steps
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.trainer.checkpoints import steps_done

pytestmark = [pytest.mark.apptainer, pytest.mark.training, pytest.mark.timeout(1500)]

SMALL = {"tasks.projects": '["inflection"]', "tasks.per_project": "2", "model.sft_steps": "60", "trainer.steps": "1"}
IN_IMAGES = {"model__sft_steps": "60", "images__runtime": "images/runtime.sif", "images__trainer": "images/trainer.sif"}


@dataclass
class FrozenSite(slurm_site.Site):
    """A login node whose user has images."""

    user: Site

    def skyrl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        slurm = {name: self.cluster.environment[name] for name in ("SLURM_CONF", "PATH")}
        process = self.user.popen(self.user.work / "venv/bin/skyrl-stack", *arguments, **slurm)
        output, _ = process.communicate(timeout=150)
        return subprocess.CompletedProcess(arguments, process.returncode, output, "")


@pytest.fixture(scope="module")
def user(frozen_site: Site) -> Site:
    frozen_site.build("trainer", "--cpu")
    return frozen_site


@pytest.fixture
def site(user: Site) -> Iterator[FrozenSite]:
    if lacking := missing():
        cannot_run(f"a private Slurm needs {', '.join(lacking)}: run scripts/setup-slurm as root")
    with running_cluster() as cluster:
        yield FrozenSite(cluster, user.checkout, user)


def test_the_trainers_image_passes_its_own_test(user: Site) -> None:
    process = user.popen("apptainer", "-q", "test", "images/trainer.sif")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "torch 2." in output and "verl 0." in output
    assert list((user.work / "tmp").iterdir()) == []


def test_the_local_run_in_images(user: Site) -> None:
    sets = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    printed = user.stack("launch", "local-sif", *sets)
    directory = RunDirectory.latest(user.checkout / ".skyrl_jobs")
    (step,) = read_steps(directory)
    assert (step.number, len(step.episodes)) == (1, 8), printed
    assert all(episode.reward is not None for episode in read_episodes(directory))
    assert steps_done(directory.checkpoints) == 1
    assert_nothing_is_left(user)


def test_two_jobs_in_images_and_the_notice_of_slurm_reaches_the_trainer(site: FrozenSite) -> None:
    directory = site.launch(**slurm_site.WITH_VERL, **IN_IMAGES, run__requeue="false", trainer__steps="50")
    site.wait(lambda: steps_done(directory.checkpoints) or directory.failure(), 900, "the first step", directory)
    trainer = site.job(directory, "trainer").id
    site.cluster.run("scancel", "--signal=USR1", "--batch", trainer)
    site.wait_until_both_ended(directory, 300)
    failure = directory.failure()
    assert failure and failure.told_to_stop
    assert 1 <= steps_done(directory.checkpoints) == len(read_steps(directory)) < 50
    assert_nothing_is_left(site.user)


def assert_nothing_is_left(user: Site) -> None:
    assert user.processes("skyrl_stack", "squashfuse", "ray", "conmon", "crun") == set()
    assert list((user.work / "tmp").glob("skyrl-*")) == []
