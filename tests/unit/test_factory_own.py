"""A project of the user's own: an sdist, or a git checkout."""

import io
import tarfile
from pathlib import Path

import pytest

from skyrl_stack.errors import ProfileError, SetupError
from skyrl_stack.factory.catalogue import Project
from skyrl_stack.factory.index import fetch
from skyrl_stack.factory.own import own_project
from skyrl_stack.factory.repository import git, unpack

FILES = {"PKG-INFO": "Name: My_Box\nVersion: 2.1\nLicense: MIT\n", "src/box/a.py": "", "tests/test_a.py": ""}


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    file = tmp_path / "my_box-2.1.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        for name, text in FILES.items():
            entry = tarfile.TarInfo(f"my_box-2.1/{name}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return file


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "My Box"
    for name, text in FILES.items():
        if name != "PKG-INFO":
            (root / name).parent.mkdir(parents=True)
            (root / name).write_text(text)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message=x")
    (root / "not_committed.py").touch()
    return root


def own(place: Path, downloads: Path, sources: str = "src/*/*.py", tests: str = "tests/test_*.py") -> Project:
    return own_project(place, sources=[sources], tests=[tests], wheels=[], downloads=downloads)


def test_an_sdist_says_who_it_is_and_is_never_downloaded(sdist: Path, tmp_path: Path) -> None:
    project = own(sdist, tmp_path / "downloads")
    assert (project.name, project.version, project.license) == ("my-box", "2.1", "MIT")
    unpack(project, fetch(project.sdist, tmp_path / "downloads"), tmp_path / "unpacked")
    assert (tmp_path / "unpacked/src/box/a.py").is_file()


def test_a_checkout_is_its_head_and_always_the_same(checkout: Path, tmp_path: Path) -> None:
    project = own(checkout, tmp_path / "downloads")
    assert project.name == "my-box"
    assert project.version == f"0+{git(checkout, 'rev-parse', 'HEAD')[:10]}"
    assert own(checkout, tmp_path / "others") == project
    unpack(project, fetch(project.sdist, tmp_path / "downloads"), tmp_path / "unpacked")
    assert sorted(path.name for path in (tmp_path / "unpacked").iterdir()) == ["PKG-INFO", "src", "tests"]


def test_what_is_no_project_is_refused(sdist: Path, tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"--tests t/\*.py: no such file"):
        own(sdist, tmp_path, tests="t/*.py")
    (tmp_path / "x.tar.gz").write_bytes(b"no tar")
    with pytest.raises(ProfileError, match="not a source distribution"):
        own(tmp_path / "x.tar.gz", tmp_path)
    with tarfile.open(tmp_path / "y.tar.gz", "w:gz"):
        pass
    with pytest.raises(ProfileError, match="no PKG-INFO"):
        own(tmp_path / "y.tar.gz", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SetupError, match="not a git repository"):
        own(tmp_path / "empty", tmp_path)
