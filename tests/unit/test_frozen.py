"""Which Python a role is started with."""

import sys
from pathlib import Path

import pytest

from skyrl_stack.errors import SetupError
from skyrl_stack.launch import frozen
from skyrl_stack.profile import ImagesSection, Profile, TrainerSection
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.sif.definition import Definition
from skyrl_stack.sif.lock import LOCK, ImagesLock, LockedImage, sha256


def run(tmp_path: Path, *, device: str = "cpu") -> RunDirectory:
    trainer = TrainerSection.model_validate({"device": device})
    images = ImagesSection(trainer=tmp_path / "trainer.sif")
    return RunDirectory.create(tmp_path / "runs", Profile(name="test", images=images, trainer=trainer))


@pytest.fixture
def apptainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has Apptainer; nothing of it is called but for its version."""
    program = tmp_path / "bin/apptainer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho apptainer version 1.4.5\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("SKYRL_CACHE", str(tmp_path / "cache"))


def test_without_an_image_it_is_our_own(tmp_path: Path) -> None:
    assert frozen.interpreter(run(tmp_path), "runtime") == [sys.executable]


def test_with_one_it_is_the_images_and_sees_the_run(tmp_path: Path, apptainer: None) -> None:
    directory = run(tmp_path)
    command = frozen.interpreter(directory, "trainer")
    assert command[:2] == [str(tmp_path / "bin/apptainer"), "-q"]
    assert command[-2:] == [str(tmp_path / "trainer.sif"), "python"]
    assert f"SKYRL_CACHE={tmp_path / 'cache'}" in command
    bound = [Path(command[number + 1]) for number, word in enumerate(command) if word == "--bind"]
    assert any(directory.path.is_relative_to(path) for path in bound)
    assert "--nv" not in command


def test_a_podman_of_the_machine_is_shown(tmp_path: Path, apptainer: None) -> None:
    images = ImagesSection(runtime=tmp_path / "runtime.sif")
    profile = Profile.model_validate(
        {
            "name": "test",
            "images": images,
            "tasks": {"file": "tasks.jsonl"},
            "runtime": {"podman_socket": "/run/somewhere/podman.sock"},
        }
    )
    command = frozen.interpreter(RunDirectory.create(tmp_path / "runs", profile), "runtime")
    assert "/run/somewhere" in [command[number + 1] for number, word in enumerate(command) if word == "--bind"]


def test_it_trusts_what_the_machine_trusts(tmp_path: Path, apptainer: None, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "site.pem"
    bundle.touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    command = frozen.interpreter(run(tmp_path), "trainer")
    assert f"{bundle}:/etc/ssl/certs/ca-certificates.crt:ro" in command
    assert "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt" in command
    assert not any(word.startswith("CURL_CA_BUNDLE") for word in command)


def test_a_gpu_is_asked_for_only_where_there_is_one(
    tmp_path: Path, apptainer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = run(tmp_path, device="cuda")
    monkeypatch.setattr(frozen, "_NVIDIA", tmp_path / "nvidiactl")
    with pytest.raises(SetupError, match="shows no GPU"):
        frozen.interpreter(directory, "trainer")
    (tmp_path / "nvidiactl").touch()
    assert "--nv" in frozen.interpreter(directory, "trainer")


def test_a_missing_image_is_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(
        SetupError, match=r"images.trainer = .*trainer.sif: no such file; run `make images NAME=trainer`"
    ):
        frozen.require_images(run(tmp_path).profile())


def test_an_image_that_no_lock_knows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    profile = run(tmp_path).profile()
    unlocked = profile.model_copy(update={"images": profile.images.model_copy(update={"unlocked": True})})
    (tmp_path / "trainer.sif").write_bytes(b"image")
    with pytest.raises(SetupError, match="knows no image trainer"):
        frozen.require_images(profile)
    frozen.require_images(unlocked)


def test_an_image_without_vllm_is_refused_for_a_gpu(tmp_path: Path, checkout: Path) -> None:
    frozen.require_images(run(tmp_path).profile())
    with pytest.raises(SetupError, match="made without vLLM"):
        frozen.require_images(run(tmp_path, device="cuda").profile())


def test_an_image_of_other_source_is_refused(tmp_path: Path, checkout: Path) -> None:
    profile = run(tmp_path).profile()
    (checkout / "src/program.py").write_text("print('changed since')")
    with pytest.raises(SetupError, match="made of other source than lies here; run `make images NAME=trainer`"):
        frozen.require_images(profile)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to launch from, with an image for machines without GPUs that was made of what lies there."""
    monkeypatch.chdir(tmp_path)
    for name in ("containers", "src"):
        (tmp_path / name).mkdir()
    (tmp_path / "src/program.py").write_text("print()")
    (tmp_path / "containers/trainer.def").write_text("Bootstrap: docker\nFrom: base\n%files\n    src /opt/src\n")
    (tmp_path / "trainer.sif").write_bytes(b"image")
    entry = locked(tmp_path / "trainer.sif", Definition.of("trainer", tmp_path).digest(tmp_path))
    ImagesLock(images={"trainer": entry}).write(tmp_path / LOCK)
    return tmp_path


def locked(file: Path, definition: str) -> LockedImage:
    unknown = "0" * 64
    return LockedImage(
        definition=definition,
        environment=unknown,
        arguments={"GROUPS": "trainer"},
        base=unknown,
        debian=unknown,
        sbom=unknown,
        result=sha256(file),
        size_bytes=file.stat().st_size,
        apptainer="1.4.5",
    )
