"""Rows, repositories, effects and downloads: reproducible, hash-checked, and in the shape that swebench grades."""

import functools
import hashlib
import http.server
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from skyrl_stack.errors import ProfileError, SetupError
from skyrl_stack.factory.candidates import candidates, suite_files
from skyrl_stack.factory.catalogue import Artifact, Project, catalogue, choose
from skyrl_stack.factory.effects import Effect, baseline, effect
from skyrl_stack.factory.index import fetch
from skyrl_stack.factory.repository import commit, git, reverse, unpack
from skyrl_stack.factory.rows import fix_of, make_row, recipe
from skyrl_stack.tasks.evaluation import specification, statuses

SOURCE = "def double(number):\n    return number * 2\n"
TEST = "from inflection import double\n\n\ndef test_double():\n    assert double(2) == 4\n"


@pytest.fixture
def project() -> Project:
    return catalogue()["inflection"]


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    root = tmp_path / "inflection-0.5.1"
    (root / "inflection").mkdir(parents=True)
    (root / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: inflection\nVersion: 0.5.1\n")
    (root / ".gitignore").write_text("*.py\n")
    (root / "inflection" / "__init__.py").write_text(SOURCE)
    (root / "test_inflection.py").write_text(TEST)
    path = tmp_path / "inflection-0.5.1.tar.gz"
    with tarfile.open(path, "w:gz") as tarball:
        tarball.add(root, root.name)
    return path


def test_a_repository_has_the_same_hash_on_every_machine(
    project: Project, sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = set()
    for name, zone in (("a", "UTC"), ("b", "Asia/Tokyo")):
        monkeypatch.setenv("TZ", zone)
        monkeypatch.setenv("GIT_AUTHOR_NAME", name)
        monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
        unpack(project, sdist, tmp_path / name)
        hashes.add(commit(tmp_path / name, project))
    assert hashes == {"5bce23c9af502d68203993d5cfb6d3f9668b3b71"}


def test_the_buggy_repository_holds_no_trace_of_the_fix(project: Project, sdist: Path, tmp_path: Path) -> None:
    root = tmp_path / "repository"
    unpack(project, sdist, root)
    candidate = next(candidates(project, root, seed=0))
    reverse(root, fix_of(candidate))
    head = commit(root, project)
    objects = git(root, "cat-file", "--batch-all-objects", "--batch-check=%(objecttype) %(objectname)").split("\n")
    assert [line for line in objects if line.startswith("commit")] == [f"commit {head}"]
    blobs = [line.split()[1] for line in objects if line.startswith("blob")]
    contents = [git(root, "cat-file", "blob", blob) for blob in blobs]
    assert candidate.buggy in contents
    assert SOURCE not in contents
    assert not (root / ".git" / "logs").exists()
    assert git(root, "status", "--porcelain", "--ignored") == ""


def test_a_tarball_of_something_else_is_refused(project: Project, tmp_path: Path) -> None:
    (tmp_path / "readme").write_text("no sdist")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tarball:
        tarball.add(tmp_path / "readme", "readme")
    with pytest.raises(SetupError, match="not an sdist of inflection"):
        unpack(project, tmp_path / "x.tar.gz", tmp_path / "x")


def test_flaky_and_failing_tests_and_ids_with_blanks_are_dropped() -> None:
    first = {"t::a": "PASSED", "t::flaky": "PASSED", "t::b[x y]": "PASSED", "t::once": "PASSED", "t::f": "FAILED"}
    second = {"t::a": "PASSED", "t::flaky": "FAILED", "t::b[x y]": "PASSED", "t::x": "XFAIL", "t::f": "FAILED"}
    assert baseline(first, second) == ("t::a",)
    assert baseline(None, second) == ()


@pytest.mark.parametrize(
    ("buggy", "outcome"),
    [
        (None, "not run"),
        ({"a": "PASSED"}, "collection broken"),
        ({"a": "PASSED", "b": "PASSED"}, "survived"),
        ({"a": "PASSED", "b": "FAILED", "other": "FAILED"}, Effect(fail_to_pass=("b",), pass_to_pass=("a",))),
        ({"a": "XFAIL", "b": "ERROR"}, Effect(fail_to_pass=("b",), pass_to_pass=("a",))),
    ],
)
def test_a_bug_makes_a_task_when_tests_fail_by_it(buggy: dict[str, str] | None, outcome: Effect | str) -> None:
    assert effect(("a", "b"), buggy) == outcome


def test_a_bug_that_breaks_nearly_all_is_no_task() -> None:
    sound = [f"t{number}" for number in range(40)]
    assert effect(sound, dict.fromkeys(sound, "FAILED")) == "too many failures"


def test_swebench_takes_the_row_and_runs_it_in_base(project: Project, sdist: Path, tmp_path: Path) -> None:
    unpack(project, sdist, tmp_path / "r")
    candidate = next(candidates(project, tmp_path / "r", seed=0))
    how = recipe(project, files=suite_files(project, tmp_path / "r"), commit="c0ffee", image="localhost/x:1")
    row = make_row(project, candidate, Effect(("test_inflection.py::test_double",), ()), how)
    specification_ = specification(row.model_dump(mode="json"))
    assert specification_.FAIL_TO_PASS == ["test_inflection.py::test_double"]
    lines = specification_.eval_script.splitlines()
    assert "git checkout c0ffee -- test_inflection.py" in lines
    assert lines.index("SWEBENCH_TEST_EXIT_CODE=$?") == lines.index(": '>>>>> End Test Output'") - 1
    assert subprocess.run(["bash", "-n"], input=row.eval_script, text=True).returncode == 0
    assert candidate.functions[0] in row.problem_statement
    assert row.patch not in row.problem_statement
    assert row.instance_id.startswith("pypi__inflection-0.5.1.")


def test_a_log_without_an_end_says_nothing(project: Project) -> None:
    how = recipe(project, files=["t.py"], commit="c0ffee", image="localhost/x:1")
    whole = "+ : '>>>>> Start Test Output'\nPASSED t.py::a\n+ : '>>>>> End Test Output'\n"
    assert statuses(how, whole) == {"t.py::a": "PASSED"}
    assert statuses(how, whole.partition("+ : '>>>>> End")[0]) is None


def test_every_project_of_the_catalogue_is_pinned() -> None:
    assert set(catalogue()) >= {"inflection", "parse", "toolz", "cachetools", "boltons", "python-slugify", "humanize"}
    for project in catalogue().values():
        assert project.version in project.sdist.file
        assert [wheel.file for wheel in project.wheels if not wheel.file.endswith("none-any.whl")] == []


def test_an_unknown_project_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ProfileError, match=r"no project djang; there are boltons, .*toolz"):
        choose(["toolz", "djang"])


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package index in HTML, as PEP 503 has it."""
    root = tmp_path / "simple"
    (root / "toy").mkdir(parents=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("PIP_INDEX_URL", f"http://user:secret@127.0.0.1:{server.server_port}/")
        yield root / "toy"
        server.shutdown()


def toy(data: bytes) -> Artifact:
    return Artifact(project="toy", file="toy-1.tar.gz", sha256=hashlib.sha256(data).hexdigest())


def test_a_file_is_fetched_once(index: Path, tmp_path: Path) -> None:
    (index / "index.html").write_text('<a href="toy-1.tar.gz#sha256=00">toy</a>')
    (index / "toy-1.tar.gz").write_bytes(b"content")
    path = fetch(toy(b"content"), tmp_path / "cache")
    assert path.read_bytes() == b"content"
    (index / "toy-1.tar.gz").unlink()
    assert fetch(toy(b"content"), tmp_path / "cache") == path


def test_another_content_than_pinned_is_refused(index: Path, tmp_path: Path) -> None:
    (index / "index.html").write_text('<a href="toy-1.tar.gz">toy</a>')
    (index / "toy-1.tar.gz").write_bytes(b"tampered")
    with pytest.raises(SetupError, match="another content"):
        fetch(toy(b"content"), tmp_path / "cache")
    assert not (tmp_path / "cache" / "toy-1.tar.gz").exists()


def test_an_index_without_the_file_is_named_without_its_password(index: Path, tmp_path: Path) -> None:
    (index / "index.html").write_text("")
    with pytest.raises(SetupError, match=r"toy-1\.tar\.gz: http://127\.0\.0\.1.*not listed") as error:
        fetch(toy(b""), tmp_path / "cache")
    assert "secret" not in str(error.value)
