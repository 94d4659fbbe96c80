"""Fixtures of the fast tests."""

import os
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Slurm's commands, first on PATH; they say what the test tells them to say."""
    folder: Path = tmp_path_factory.mktemp("bin")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin:/bin")
    return FakeSlurm(folder)
