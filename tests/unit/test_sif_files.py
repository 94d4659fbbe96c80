"""Definitions, their lock, and a SIF file's own bookkeeping; building for real is tests/integration/test_sif.py."""

import struct
from pathlib import Path

import pytest

from skyrl_stack.errors import SetupError
from skyrl_stack.sif.apptainer import reason
from skyrl_stack.sif.definition import Definition
from skyrl_stack.sif.lock import ImagesLock, LockedImage, sha256
from skyrl_stack.sif.normal import normalise

ROOT = Path(__file__).parents[2]
GOOD = """\
Bootstrap: {{ BOOTSTRAP }}
From: {{ FROM }}
# a comment
%arguments
    BOOTSTRAP=docker
    FROM=a@sha256:b=
%files
    one /opt/one
%post
    mount -t tmpfs tmpfs /tmp
    mount -t tmpfs tmpfs /var/tmp
    echo key: value
%test
    true
"""


def definition(tmp_path: Path, text: str) -> Definition:
    (tmp_path / "x.def").write_text(text)
    return Definition.read(tmp_path / "x.def")


@pytest.mark.parametrize("name", ["runtime", "trainer"])
def test_our_definitions_leave_the_host_alone(name: str) -> None:
    ours = Definition.read(ROOT / f"containers/{name}.def")
    assert ours.complaints() == []
    assert "@sha256:" in ours.arguments["FROM"]
    assert len(ours.digest(ROOT)) == 64


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("    mount -t tmpfs tmpfs /var/tmp\n", ""), "begin it with"),
        (("    mount -t tmpfs tmpfs /tmp\n", "    rm -rf /tmp/*\n    mount -t tmpfs tmpfs /tmp\n"), "begin it with"),
        (("%test\n    true\n", "%setup\n    rm -rf /tmp/x\n"), "%setup"),
    ],
)
def test_a_definition_that_could_touch_the_host_is_refused(
    tmp_path: Path, change: tuple[str, str], complaint: str
) -> None:
    assert definition(tmp_path, GOOD).complaints() == []
    (found,) = definition(tmp_path, GOOD.replace(*change)).complaints()
    assert complaint in found


def test_each_stage_is_looked_at(tmp_path: Path) -> None:
    two = definition(tmp_path, GOOD + GOOD.replace("    mount -t tmpfs tmpfs /tmp\n", ""))
    assert len(two.stages) == 2
    assert len(two.complaints()) == 1


def test_what_a_definition_says_of_itself(tmp_path: Path) -> None:
    read = definition(tmp_path, GOOD)
    assert read.arguments == {"BOOTSTRAP": "docker", "FROM": "a@sha256:b="}
    assert read.sources == ["one"]
    assert read.stages[0].sections["post"][-1] == "echo key: value"


def test_the_digest_covers_what_is_copied_by_name_and_content(tmp_path: Path) -> None:
    read = definition(tmp_path, GOOD)
    with pytest.raises(SetupError, match="one: missing"):
        read.digest(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one/a").write_text("x")
    (tmp_path / "one/__pycache__").mkdir()
    first = read.digest(tmp_path)
    (tmp_path / "one/__pycache__/a.pyc").write_text("x")
    assert read.digest(tmp_path) == first
    (tmp_path / "one/a").rename(tmp_path / "one/b")
    second = read.digest(tmp_path)
    (tmp_path / "one/b").write_text("y")
    assert len({first, second, read.digest(tmp_path)}) == 3


@pytest.mark.parametrize("text", ["", "hello\n", "From: x\n%post\n  true\n"])
def test_what_is_no_definition_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SetupError, match=r"x\.def: not a definition file"):
        definition(tmp_path, text)


def entry(file: Path) -> LockedImage:
    return LockedImage(
        definition="d",
        environment="e",
        arguments={"FROM": "x"},
        base="b",
        debian="d",
        sbom="s",
        result=sha256(file),
        size_bytes=file.stat().st_size,
        apptainer="1.4.5",
    )


def test_the_lock_knows_its_images_and_no_others(tmp_path: Path) -> None:
    image, file = tmp_path / "runtime.sif", tmp_path / "images.lock"
    image.write_bytes(b"image")
    ImagesLock.read(file).with_image("runtime", entry(image)).write(file)
    lock = ImagesLock.read(file)
    assert lock.verify("runtime", image) == entry(image)
    with pytest.raises(SetupError, match="knows no image trainer"):
        lock.verify("trainer", image)
    image.write_bytes(b"imagf")
    with pytest.raises(SetupError, match="not the image that the lock describes"):
        lock.verify("runtime", image)
    image.unlink()
    with pytest.raises(SetupError, match="missing; run"):
        lock.verify("runtime", image)


def test_a_damaged_lock_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "images.lock").write_text("{")
    with pytest.raises(SetupError, match="damaged"):
        ImagesLock.read(tmp_path / "images.lock")


def sif(path: Path, *, identity: bytes, time: int, content: bytes) -> Path:
    """A SIF file of one object: header, table of two descriptors (one unused), the object."""
    table_at, data_at = 128, 128 + 2 * 585
    header = bytearray(128)
    header[32:41], header[48:64] = b"SIF_MAGIC", identity
    struct.pack_into("<8q", header, 64, time, time, 1, 2, table_at, 2 * 585, data_at, len(content))
    used = bytearray(585)
    used[4] = 1
    struct.pack_into("<2q", used, 17, data_at, len(content))
    struct.pack_into("<4q", used, 41, time, time, 1000, 1000)
    path.write_bytes(bytes(header) + bytes(used) + bytes(585) + content)
    return path


def test_the_same_objects_give_the_same_bytes(tmp_path: Path) -> None:
    one = sif(tmp_path / "1", identity=b"a" * 16, time=1, content=b"x" * 5000)
    two = sif(tmp_path / "2", identity=b"b" * 16, time=2, content=b"x" * 5000)
    other = sif(tmp_path / "3", identity=b"b" * 16, time=2, content=b"y" * 5000)
    for path in (one, two, other):
        normalise(path)
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes()[48:64] != other.read_bytes()[48:64]
    assert one.read_bytes().endswith(b"x" * 5000)


def test_only_sif_files_are_touched(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 500)
    with pytest.raises(SetupError, match="not a SIF file"):
        normalise(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"x" * 500


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("E: Failed to fetch http://deb.debian.org/x.deb  Temporary failure resolving 'deb.debian.org'", "the network"),
        ("FATAL:   While performing build: conveyor failed to get: the image's architecture (arm64) could not run on "
         "the host's (amd64)", "another architecture"),
        ("FATAL:   image targets 'arm64', cannot run on 'amd64'", "another architecture"),
        ("set_attributes: failed to change uid and gids on /image/rootfs/etc/shadow, because Invalid argument",
         "entries in /etc/subuid"),
        ("INFO:    User not listed in /etc/subuid, trying root-mapped namespace", "without sub-ids"),
        ("Write on output file failed because No space left on device", "set TMPDIR"),
        ("x.py: SyntaxError", "x.py: SyntaxError"),
    ],
)  # fmt: skip
def test_why_a_build_failed_is_one_line_with_the_way_out(said: str, meaning: str) -> None:
    summary = "FATAL:   While performing build: while running engine: while running %post section: exit status 100"
    assert meaning in reason(["INFO:    Starting build...", said, "", summary], Path("/tmp/x"))
