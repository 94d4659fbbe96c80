"""Profiles: what ships loads; what is wrong is said in one line with the file, the key and the remedy."""

from pathlib import Path

import pytest

from skyrl_stack.errors import ProfileError
from skyrl_stack.profile import SITE_VARIABLE, load_profile, override_profile
from skyrl_stack.site import SlurmLauncher

PROFILES = Path(__file__).parents[2] / "profiles"


@pytest.fixture
def profile_file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text("[trainer]\nsteps = 3\n")
    return file


SITE = """
account = "lab"
modules = ["cuda/13.0"]
bind = ["/n/data:/data:ro"]
[environment]
HTTPS_PROXY = "http://proxy:3128"
[queues.short]
runtime = { partition = "cpu" }
trainer = { partition = "gpu", gpu_type = "a100" }
[queues.long]
runtime = { partition = "big" }
trainer = { partition = "huge", qos = "high" }
"""
AT_A_SITE = """
site = "here"
[launcher]
kind = "slurm"
queue = "short"
[launcher.environment]
MINE = "1"
[launcher.runtime]
time_limit = "1:00:00"
cpus = 2
memory_gb = 4
[launcher.trainer]
time_limit = "1:00:00"
cpus = 2
memory_gb = 4
"""


@pytest.fixture
def at_a_site(tmp_path: Path) -> Path:
    """A profile that names a site, beside that site's file."""
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "here.toml").write_text(SITE)
    (tmp_path / "mine.toml").write_text(AT_A_SITE)
    return tmp_path / "mine.toml"


def launcher_of(path: Path, *overrides: str) -> SlurmLauncher:
    launcher = load_profile(path, overrides).launcher
    assert isinstance(launcher, SlurmLauncher)
    return launcher


@pytest.mark.parametrize("file", sorted(PROFILES.glob("*.toml")), ids=lambda file: file.stem)
def test_every_shipped_profile_loads_and_is_named_after_its_file(file: Path) -> None:
    assert load_profile(file).name == file.stem


def test_overrides_are_typed_and_applied_in_order(profile_file: Path) -> None:
    profile = load_profile(profile_file, ["trainer.steps=4", "trainer.steps=5", "model.path=/models/qwen"])
    assert profile.trainer.steps == 5
    assert profile.model.path == "/models/qwen"
    assert profile.name == "mine"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["runtime.podman_socket=/run/podman.sock"], "makes no tasks; name a file of them by tasks.file"),
        (["runtime.podman_socket=podman.sock", "tasks.file=t.jsonl"], "must be an absolute path"),
    ],
)
def test_a_podman_behind_a_socket_needs_tasks(profile_file: Path, overrides: list[str], reason: str) -> None:
    with pytest.raises(ProfileError, match=reason):
        load_profile(profile_file, overrides)


def test_verl_options_pass_through_with_their_dots(profile_file: Path) -> None:
    profile = load_profile(profile_file, ["trainer.verl.actor_rollout_ref.actor.clip_ratio_high=0.28"])
    assert profile.trainer.verl == {"actor_rollout_ref.actor.clip_ratio_high": 0.28}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.stepz=1", "trainer.stepz: no such key; did you mean steps?"),
        ("trainer.steps=0", "trainer.steps = 0: input should be greater than or equal to 1"),
        ("runtime.lease_s=5min", "runtime.lease_s = '5min': input should be a valid number"),
        ("runtime.max_sandboxes=1", "raise the second or lower the first"),
        ("runtime.network=bridge", "runtime.network = 'bridge'"),
        ("banana=1", "known keys: agent,"),
        ("trainer.steps", "write it as section.key=value"),
        ("trainer..steps=1", "write it as section.key=value"),
        ("name.first=1", "name"),
    ],
)
def test_a_wrong_value_is_one_line_with_key_and_remedy(profile_file: Path, override: str, said: str) -> None:
    with pytest.raises(ProfileError) as caught:
        load_profile(profile_file, [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_and_a_broken_file_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"absent\.toml: no such profile"):
        load_profile(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[trainer\n")
    with pytest.raises(ProfileError, match=r"broken\.toml: not valid TOML"):
        load_profile(broken)


def test_what_a_site_says_the_profile_need_not(at_a_site: Path) -> None:
    launcher = launcher_of(at_a_site)
    assert (launcher.account, launcher.modules, launcher.bind) == ("lab", ("cuda/13.0",), ("/n/data:/data:ro",))
    assert (launcher.runtime.partition, launcher.trainer.partition, launcher.trainer.gpu_type) == ("cpu", "gpu", "a100")
    assert launcher.runtime.cpus == 2
    assert launcher.environment == {"HTTPS_PROXY": "http://proxy:3128", "MINE": "1"}


def test_a_profile_wins_over_its_site_and_an_override_over_both(at_a_site: Path) -> None:
    launcher = launcher_of(
        at_a_site, "launcher.queue=long", "launcher.runtime.partition=mine", "launcher.account=other"
    )
    assert (launcher.runtime.partition, launcher.trainer.partition, launcher.trainer.qos) == ("mine", "huge", "high")
    assert launcher.account == "other"


def test_another_site_by_variable_by_override_and_by_path(at_a_site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = at_a_site.parent / "elsewhere.toml"
    elsewhere.write_text(SITE.replace("lab", "elsewhere"))
    (at_a_site.parent / "sites" / "third.toml").write_text(SITE.replace("lab", "third"))
    monkeypatch.setenv(SITE_VARIABLE, str(elsewhere))
    assert launcher_of(at_a_site).account == "elsewhere"
    assert launcher_of(at_a_site, "site=third").account == "third"
    assert load_profile(PROFILES / "local.toml").launcher.kind == "local"


def test_a_run_keeps_its_site(at_a_site: Path) -> None:
    profile = load_profile(at_a_site)
    assert override_profile(profile, ["trainer.steps=9"]).launcher == profile.launcher
    with pytest.raises(ProfileError, match="a run stays where it began"):
        override_profile(profile, ["site=third"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("site=hero", r"mine\.toml: site = 'hero': no file .*/sites/hero\.toml; did you mean here\?"),
        ("launcher.queue=longer", r"mine\.toml: launcher\.queue = 'longer': no such queue .*did you mean long\?"),
        ("launcher.queue=zzz", "there are: long, short"),
    ],
)
def test_a_wrong_site_or_queue_names_the_right_ones(at_a_site: Path, override: str, said: str) -> None:
    with pytest.raises(ProfileError, match=said):
        load_profile(at_a_site, [override])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("acount = 'x'", "acount: no such key; did you mean account?"),
        ("[queues.odd]\nruntime = { partition = 'p' }", "queues.odd.trainer: missing"),
        ("[queues.odd]\nruntime = { partitions = 'p' }", "queues.odd.runtime.partition: missing"),
        ("bind = ['data']", "bind.0 = 'data': string should match pattern"),
        ("environment = { HF_TOKEN = 'x' }", "environment.HF_TOKEN: looks like a secret: export it"),
        ("[acc", "not valid TOML"),
    ],
)
def test_a_wrong_site_file_is_named_with_its_key(at_a_site: Path, wrong: str, said: str) -> None:
    site = at_a_site.parent / "sites" / "here.toml"
    site.write_text(wrong)
    with pytest.raises(ProfileError) as caught:
        load_profile(at_a_site)
    assert said in str(caught.value) and str(site) in str(caught.value) and "\n" not in str(caught.value)
