"""Launches of one role: what is submitted, planned and shown, and what is refused before anything starts."""

import re
import stat
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm, profile_of_two_jobs

from skyrl_stack.errors import PeerLost, ProfileError
from skyrl_stack.launch.launch import launch_profile
from skyrl_stack.launch.plan.plan import plan
from skyrl_stack.launch.plan.survey import Survey
from skyrl_stack.launch.runs import look
from skyrl_stack.launch.status import status_lines
from skyrl_stack.presence import write_heartbeat
from skyrl_stack.profile import Profile, Role, load_profile
from skyrl_stack.records import Endpoint, Incarnation, Launch, publish
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.runtime.external import ExternalRuntime, read_key

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def site(slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.toml").write_text(profile_of_two_jobs("one"))
    slurm.is_idle()
    slurm.answers("sbatch", "echo 11")
    return slurm


@pytest.fixture
def key(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.touch(mode=0o600)
    file.write_text("the-secret-key\n")
    return file


def launch(*overrides: str, dry_run: bool = False) -> list[str]:
    said: list[str] = []
    launch_profile("one.toml", overrides, resume=False, run_dir=None, dry_run=dry_run, say=said.append)
    return said


def submitted(slurm: FakeSlurm) -> list[str]:
    return [call for call in slurm.calls if call.startswith("sbatch")]


def uses(key: Path, *urls: str) -> list[str]:
    return [f"runtime.urls={list(urls)}", f"runtime.api_key_file={key}"]


def test_a_runtime_alone_is_one_job_that_slurm_does_not_bring_back(site: FakeSlurm) -> None:
    said = launch("run.runtime_only=true")
    run = RunDirectory.latest()
    assert [call.endswith("runtime.sbatch") for call in submitted(site)] == [True]
    assert f"key: {run.api_key_file}; `skyrl-stack status` shows the URLs as soon as it serves" in said
    assert stat.S_IMODE(run.api_key_file.stat().st_mode) == 0o600
    script = run.batch_script("runtime").read_text()
    assert "#SBATCH --no-requeue" in script and not run.batch_script("trainer").exists()
    assert run.api_key_file.read_text() not in script + "\n".join(said)


def test_a_key_stays_when_the_run_goes_on(site: FakeSlurm) -> None:
    launch("run.runtime_only=true")
    run = RunDirectory.latest()
    key = run.api_key_file.read_text()
    launch_profile("one.toml", ["run.runtime_only=true"], resume=True, run_dir=run.path, dry_run=False, say=print)
    assert run.api_key_file.read_text() == key and len(submitted(site)) == 2


def test_a_trainer_alone_waits_for_no_job_and_a_runtime_out_of_reach_is_no_obstacle(site: FakeSlurm, key: Path) -> None:
    said = launch(*uses(key, NOBODY))
    assert re.match(f"warning: runtime {NOBODY}: cannot be reached .*the trainer's job will see", said[0], re.I)
    (call,) = submitted(site)
    assert call.endswith("trainer.sbatch") and "--dependency" not in call
    run = RunDirectory.latest()
    assert "#SBATCH --requeue" in run.batch_script("trainer").read_text() and not run.api_key_file.exists()


def test_a_dry_run_shows_the_one_job(site: FakeSlurm, key: Path) -> None:
    said = launch(*uses(key, NOBODY), dry_run=True)
    assert submitted(site) == [] and sum(line.startswith("sbatch") for line in said) == 1
    assert "trainer.sbatch" in said[-1] and "--dependency" not in said[-1]
    assert not any("the-secret-key" in line for line in said)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["runtime.urls=['http://a:1']"], "add api_key_file (--api-key-file)"),
        (["runtime.api_key_file=k"], "add urls (--runtime-url)"),
        (["runtime.urls=['http://me:secret@a:1']", "runtime.api_key_file=k"], "runtime.urls.0 = "),
        (["runtime.urls=['http://a:1']", "runtime.api_key_file=k", "run.runtime_only=true"], "only one of them works"),
    ],
)
def test_what_makes_no_sense_is_refused(site: FakeSlurm, overrides: list[str], said: str) -> None:
    with pytest.raises(ProfileError, match=re.escape(said)):
        load_profile(Path("one.toml"), overrides)


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        ("the-secret-key", 0o644, "others may read it: chmod 600"),
        ("the-secret-key", 0o640, "others may read it: chmod 600"),
        ("", 0o600, "must hold a key and nothing else"),
        ("two words", 0o600, "must hold a key and nothing else"),
        ("kéy", 0o600, "cannot be read"),
    ],
)
def test_a_key_file_that_cannot_be_used_is_one_line(key: Path, content: str, mode: int, said: str) -> None:
    key.write_text(content)
    key.chmod(mode)
    with pytest.raises(ProfileError, match=said) as error:
        read_key(key)
    assert "\n" not in str(error.value) and (not content or content not in str(error.value))


def test_nobody_at_the_url_is_one_line(key: Path) -> None:
    with pytest.raises(PeerLost, match="cannot be reached") as error:
        ExternalRuntime(NOBODY, key).greet()
    assert "\n" not in str(error.value) and "the-secret-key" not in str(error.value)


def test_a_plan_is_of_what_is_started(site: FakeSlurm, key: Path) -> None:
    def needs(*overrides: str) -> str:
        planned = plan(load_profile(Path("one.toml"), [*overrides, "trainer.concurrent_episodes=4"]), Survey())
        return " ".join(need.what for need in planned.needs)

    alone, trainer = needs("run.runtime_only=true", "runtime.max_sandboxes=2"), needs(*uses(key, NOBODY))
    assert "runtime's job" in alone and "sandboxes" in alone and "trainer" not in alone and "disk" not in alone
    assert "trainer's job" in trainer and "disk" in trainer and "sandboxes" not in trainer and "runtime" not in trainer


@pytest.fixture
def serving(tmp_path: Path) -> RunDirectory:
    profile = Profile.model_validate({"name": "alone", "run": {"runtime_only": True}})
    directory = RunDirectory.create(tmp_path, profile)
    publish(directory.launch_file, Launch(host="another machine"))
    directory.keep_api_key()
    return directory


def show(directory: RunDirectory, role: Role, state: str) -> list[str]:
    me = Incarnation(launch_id=directory.launch().launch_id)
    write_heartbeat(directory, role, me, state)
    if state == "ready":
        endpoint = Endpoint(**me.model_dump(), url="http://cpu1:4711", token="the-secret-key")
        publish(directory.endpoint_file(role), endpoint, mode=0o600)
    return list(status_lines(look([directory])[0]))


def test_status_says_how_a_runtime_is_used_and_nothing_of_a_trainer(serving: RunDirectory) -> None:
    lines = "\n".join(show(serving, "runtime", "ready"))
    assert f"use it by  --runtime-url http://cpu1:4711 --api-key-file {serving.api_key_file}" in lines
    assert "state      running" in lines and "trainer" not in lines and "steps" not in lines
    ended = "\n".join(show(serving, "runtime", "ended"))
    assert "state      stopped" in ended and "use it by" not in ended


def test_status_of_a_trainer_alone_shows_whose_runtime_it_uses(tmp_path: Path, key: Path) -> None:
    runtime = {"urls": ["http://cpu1:4711"], "api_key_file": key}
    directory = RunDirectory.create(tmp_path / "runs", Profile.model_validate({"name": "other", "runtime": runtime}))
    publish(directory.launch_file, Launch(host="another machine"))
    show(directory, "trainer", "starting")
    lines = "\n".join(show(directory, "runtime", "ready"))
    assert "runtime    of another launch, ready 0 s ago, at http://cpu1:4711" in lines
    assert "steps      0 of" in lines and "use it by" not in lines
