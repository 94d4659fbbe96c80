"""Profiles: what ships loads; what is wrong is said in one line with the file, the key and the remedy."""

from pathlib import Path

import pytest

from skyrl_stack.errors import ProfileError
from skyrl_stack.profile import load_profile

PROFILES = Path(__file__).parents[2] / "profiles"


@pytest.fixture
def profile_file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.toml"
    file.write_text("[trainer]\nsteps = 3\n")
    return file


@pytest.mark.parametrize("file", sorted(PROFILES.glob("*.toml")), ids=lambda file: file.stem)
def test_every_shipped_profile_loads_and_is_named_after_its_file(file: Path) -> None:
    assert load_profile(file).name == file.stem


def test_overrides_are_typed_and_applied_in_order(profile_file: Path) -> None:
    profile = load_profile(profile_file, ["trainer.steps=4", "trainer.steps=5", "model.path=/models/qwen"])
    assert profile.trainer.steps == 5
    assert profile.model.path == "/models/qwen"
    assert profile.name == "mine"


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
