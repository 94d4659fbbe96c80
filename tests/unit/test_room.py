"""Room: what quotas leave, by stand-ins for the tools of file systems that are not here, which say what those say."""

import os
import shutil
from pathlib import Path

import pytest

from skyrl_stack.room import Room, room

QUOTA = """\
Disk quotas for user jane (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
nas:/export/home  60000       0  100000       0     500     800    1000       0
Disk quotas for group lab (gid 2000): none
"""
OVER = QUOTA.replace("  60000       0  100000       0", " 100001*      0  100000       0")
SOFT = QUOTA.replace("60000       0  100000", "60000   70000       0")
LUSTRE = """\
     /n/holylfs05/LABS
               {used}       0 2000000       -      10       0       0       -
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of programs that comes first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def tool(tools: Path, name: str, script: str) -> None:
    file = tools / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def says(tools: Path, name: str, text: str, *, code: int = 0) -> None:
    tool(tools, name, f"cat <<'EOF'\n{text}EOF\nexit {code}")


def test_without_quotas_it_is_the_file_systems(tools: Path, tmp_path: Path) -> None:
    says(tools, "quota", "Disk quotas for user jane (uid 1000): none\n")
    left = room(tmp_path / "not/there/yet")
    assert left.bytes == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert left.files and left.files <= os.statvfs(tmp_path).f_files


@pytest.mark.parametrize(
    ("text", "code", "left"),
    [(QUOTA, 0, Room(40_000 << 10, 500)), (OVER, 1, Room(0, 500)), (SOFT, 0, Room(10_000 << 10, 500))],
)
def test_a_quota_counts_where_it_leaves_less(tools: Path, tmp_path: Path, text: str, code: int, left: Room) -> None:
    says(tools, "quota", text, code=code)
    assert room(tmp_path) == left


def test_the_least_of_the_users_and_the_groups_counts(tools: Path, tmp_path: Path) -> None:
    says(tools, "quota", "")
    answers = {"-u": LUSTRE.format(used="[500000]"), "-g": LUSTRE.format(used="1999000")}
    cases = "\n".join(f"{kind}) cat <<'EOF'\n{text}EOF\n;;" for kind, text in answers.items())
    tool(tools, "lfs", f'[ "$1 $2 $5" = "quota -q {tmp_path}" ] || exit 2\ncase $3 in\n{cases}\nesac')
    assert room(tmp_path).bytes == 1000 << 10


def test_a_tool_that_fails_does_not_count(tools: Path, tmp_path: Path) -> None:
    tool(tools, "quota", "echo 'quota: error while getting quota from nas' >&2; exit 1")
    assert room(tmp_path).bytes > 1 << 20
