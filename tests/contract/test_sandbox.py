"""What a sandbox is: one suite for Podman itself, for a runtime's client, here or out of its image, and Apptainer's."""

import asyncio
import contextlib
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from frozen_runtime import apptainer_runtime, frozen_runtime
from frozen_site import Site
from rootfs import write_archive
from skyrl_stack.errors import SandboxExpired, SandboxLost, SandboxStartFailed
from skyrl_stack.records import Endpoint
from skyrl_stack.runtime.client import RuntimeClient
from skyrl_stack.runtime.server import serving
from skyrl_stack.runtime.wire import NotRight
from skyrl_stack.runtime_section import RuntimeSection
from skyrl_stack.sandbox.contract import READ_LIMIT_MB, FileMissing, FileTooLarge, Sandbox, SandboxProvider, SandboxSpec
from skyrl_stack.sandbox.images import image_store_path
from skyrl_stack.sandbox.outside.sandboxes import SocketSandboxes
from skyrl_stack.sandbox.podman import PodmanSandboxes
from toys import toy_task

pytestmark = [pytest.mark.podman, pytest.mark.anyio, pytest.mark.timeout(120)]

OUTPUT_LIMIT = 64 * 1024
FROZEN = [pytest.mark.apptainer, pytest.mark.timeout(1500)]  # the first test may have to build the image


@dataclass
class Backend:
    """A provider, and an image that it has."""

    provider: SandboxProvider
    image: str
    has_warden: bool = True
    is_the_user: bool = False
    "A sandbox is who launched it, and has no root."

    def require_warden(self) -> None:
        """Sizes of a Podman elsewhere are those of its cgroups, which kill or refuse without a word."""
        if not self.has_warden:
            pytest.skip("a Podman behind a socket enforces sizes by cgroups, see test_socket_sandboxes.py")

    def require_root(self) -> None:
        if self.is_the_user:
            pytest.skip("in a sandbox of Apptainer there is nobody but the user who launched")

    async def start(self, **fields: object) -> Sandbox:
        return await self.provider.start(SandboxSpec.model_validate({"image": self.image, **fields}))

    async def lose(self, sandbox: Sandbox) -> None:
        """Kill process 1 of the sandbox behind everybody's back."""
        os.kill(await asyncio.to_thread(process_1, sandbox.id), signal.SIGKILL)


def process_1(sandbox: str) -> int:
    """The first process of a sandbox, as this machine counts."""
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            is_first = (directory / "status").read_text().partition("NSpid:")[2].split("\n")[0].split()[-1] == "1"
            if is_first and f"HOSTNAME={sandbox}".encode() in (directory / "environ").read_bytes().split(b"\0"):
                return int(directory.name)
        except (OSError, IndexError):  # ended meanwhile
            continue
    raise LookupError(sandbox)


def was_throttled(sandbox: str) -> bool:
    """Whether the cgroup of a sandbox, where it has one, kept it waiting for its CPUs."""
    stats = (file.read_text() for file in Path("/sys/fs/cgroup").rglob(f"{sandbox}/cpu.stat"))
    return any(int(text.partition("nr_throttled ")[2].split()[0]) > 0 for text in stats)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def podman(tests_cache: Path, tiny_image: str) -> AsyncIterator[Backend]:
    async with PodmanSandboxes(
        secrets.token_hex(8),
        image_stores=[image_store_path(tests_cache)],
        output_limit=OUTPUT_LIMIT,
        isolation="no-netns",
    ) as podman:
        yield Backend(podman, tiny_image)


@pytest.fixture(scope="module")
async def client(podman: Backend) -> AsyncIterator[Backend]:
    async with (
        serving(podman.provider, RuntimeSection(), "token") as served,
        RuntimeClient(Endpoint(launch_id="l", url=served.url, token="token")) as client,
    ):
        yield Backend(client, podman.image)


@pytest.fixture(scope="module")
async def socket(podman_socket: Path, tiny_image: str) -> AsyncIterator[Backend]:
    async with SocketSandboxes(
        secrets.token_hex(8), podman_socket, output_limit=OUTPUT_LIMIT, isolation="no-netns"
    ) as podman:
        yield Backend(podman, tiny_image, has_warden=False)


@pytest.fixture(scope="module")
async def sif(frozen_site: Site, tiny_rootfs: Path, tiny_image: str) -> AsyncIterator[Backend]:
    with frozen_runtime(frozen_site, tiny_rootfs, tiny_image, output_limit=OUTPUT_LIMIT) as endpoint:
        assert endpoint.isolation == "full"
        async with RuntimeClient(endpoint) as client:
            yield Backend(client, tiny_image)


@pytest.fixture(scope="module")
async def weak(ordinary_site: Site, tiny_rootfs: Path, tiny_image: str) -> AsyncIterator[Backend]:
    archive = ordinary_site.checkout / "tiny.tar"
    write_archive(tiny_rootfs, tiny_image, archive)
    tasks = [toy_task(image=tiny_image)]
    with apptainer_runtime(ordinary_site, [archive], tasks, output_limit=OUTPUT_LIMIT) as endpoint:
        assert endpoint.isolation == "weak"
        async with RuntimeClient(endpoint) as client:
            yield Backend(client, tiny_image, is_the_user=True)


BACKENDS = ["podman", "client", "socket", pytest.param("weak", marks=FROZEN), pytest.param("sif", marks=FROZEN)]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.getfixturevalue(request.param)


@pytest.fixture
async def sandbox(backend: Backend) -> AsyncIterator[Sandbox]:
    sandbox = await backend.start()
    yield sandbox
    await sandbox.stop()


async def running(sandbox: Sandbox, needle: str) -> int:
    """How many processes of the sandbox have `needle` in their command line."""
    count = 'n=0; for p in /proc/[0-9]*; do read -rd "" -N 4096 c < $p/cmdline; [[ $c == *$0* ]] && n=$((n+1)); done'
    script = f"bash -c '{count}; echo $n' {needle[:2]}''{needle[2:]} 2>/dev/null"
    return int((await sandbox.run(script, shell="observer")).stdout) - 1  # the observer's own


async def until_running(sandbox: Sandbox, needle: str) -> None:
    """Until there is one such process: what a shell has begun is not at once what it will be."""
    deadline = time.monotonic() + 10
    while (found := await running(sandbox, needle)) != 1:
        assert found == 0 and time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def test_streams_and_exit_code_are_apart(sandbox: Sandbox) -> None:
    result = await sandbox.run("echo out; echo err >&2; (exit 7)")
    assert (result.exit_code, result.stdout, result.stderr) == (7, "out\n", "err\n")
    assert not result.timed_out
    assert result.truncated_bytes == 0


async def test_directory_and_environment_last(sandbox: Sandbox) -> None:
    await sandbox.run("mkdir '/tmp/a b'; cd '/tmp/a b'; export NAME=$'two\\nlines'; function twice { echo $1$1; }")
    result = await sandbox.run('pwd; echo "$NAME"; twice x')
    assert result.stdout == "/tmp/a b\ntwo\nlines\nxx\n"


async def test_starts_in_its_directory_with_its_environment(backend: Backend) -> None:
    sandbox = await backend.start(workdir="/tmp", environment={"GREETING": "good  day"})
    assert (await sandbox.run('pwd; echo "$GREETING"')).stdout == "/tmp\ngood  day\n"
    assert (await sandbox.run("pwd", shell="other")).stdout == "/tmp\n"
    await sandbox.stop()


async def test_the_images_own_directory(backend: Backend) -> None:
    sandbox = await backend.start(workdir=None)
    assert (await sandbox.run("pwd")).stdout == "/testbed\n"
    await sandbox.stop()


async def test_cwd_is_a_cd(sandbox: Sandbox) -> None:
    assert (await sandbox.run("pwd", cwd="/tmp")).stdout == "/tmp\n"
    assert (await sandbox.run("pwd")).stdout == "/tmp\n"
    missing = await sandbox.run("echo not reached", cwd="/no such place")
    assert missing.exit_code == 1
    assert missing.stdout == ""
    assert "no such place" in missing.stderr


async def test_shells_are_apart(sandbox: Sandbox) -> None:
    await sandbox.run("cd /tmp; export A=1", shell="one")
    assert (await sandbox.run("pwd; echo -$A-", shell="two")).stdout == "/testbed\n--\n"


async def test_shells_run_at_the_same_time(sandbox: Sandbox) -> None:
    await sandbox.run("mkfifo /tmp/meet")
    reader, writer = await asyncio.gather(
        sandbox.run("read -r word < /tmp/meet; echo $word", shell="one", timeout_s=20),
        sandbox.run("echo hello > /tmp/meet", shell="two", timeout_s=20),
    )
    assert reader.stdout == "hello\n"
    assert writer.exit_code == 0


async def test_commands_of_one_shell_take_turns(sandbox: Sandbox) -> None:
    results = await asyncio.gather(*(sandbox.run(f"a={n}; sleep 0.05; echo $a") for n in range(5)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(5)]


async def test_text_of_any_kind(sandbox: Sandbox) -> None:
    result = await sandbox.run("cat <<'END'\nnaïve 日本 \"$x\" '\\n' 🐍\nEND\nprintf '\\377\\0x'")
    assert result.stdout == "naïve 日本 \"$x\" '\\n' 🐍\n\ufffd\0x"


async def test_a_long_command(sandbox: Sandbox) -> None:
    result = await sandbox.run(f"text='{'é' * 500_000}'; echo ${{#text}}")
    assert result.stdout in ("500000\n", "1000000\n")  # characters, or bytes where the locale has no others


@pytest.mark.parametrize(
    ("command", "code", "after"),
    [
        ("exec >/dev/null; echo lost", 0, 0),
        ("cat", 0, 0),
        ("if x", 2, 0),
        ("echo 'unclosed", 2, 0),
        ("set -eu; true", 0, 0),
        ("exec true", 0, 0),
        ("exit 3", 3, 0),
        ("kill -9 $$", 137, 0),
        ("break", 0, 0),
    ],
)
async def test_no_command_breaks_the_shell(sandbox: Sandbox, command: str, code: int, after: int) -> None:
    await sandbox.run("cd /tmp; export KEPT=yes")
    assert (await sandbox.run(command, timeout_s=20)).exit_code == code
    result = await sandbox.run("pwd; echo $KEPT")
    assert (result.exit_code, result.stdout) == (after, "/tmp\nyes\n")


async def test_huge_output_is_capped_in_the_middle(sandbox: Sandbox) -> None:
    started = time.monotonic()
    result = await sandbox.run("echo first; head -c 20000000 /dev/zero | tr '\\0' x; echo; echo last", timeout_s=60)
    assert time.monotonic() - started < 20
    assert result.stdout.startswith("first\nxxx")
    assert result.stdout.endswith("xxx\nlast\n")
    assert result.truncated_bytes == 20_000_000 + len("first\n\nlast\n") - OUTPUT_LIMIT
    assert f"{result.truncated_bytes} bytes cut" in result.stdout
    assert len(result.stdout) < OUTPUT_LIMIT + 100


async def test_timeout_is_a_result_with_the_output_so_far(sandbox: Sandbox) -> None:
    await sandbox.run("cd /tmp; export A=1")
    started = time.monotonic()
    result = await sandbox.run("echo before; echo problem >&2; cd /; A=2; sleep 600", timeout_s=0.5)
    assert time.monotonic() - started < 10
    assert (result.exit_code, result.timed_out) == (124, True)
    assert (result.stdout, result.stderr) == ("before\n", "problem\n")
    assert (await sandbox.run("pwd; echo $A")).stdout == "/tmp\n1\n"


async def test_timeout_kills_every_descendant(sandbox: Sandbox) -> None:
    command = "sleep 7771 & setsid sleep 7772 & bash -c 'setsid env -i sleep 7773 & sleep 7774' & wait"
    result = await sandbox.run(command, timeout_s=0.7)
    assert result.timed_out
    for seconds in ("7771", "7772", "7773", "7774"):
        assert await running(sandbox, seconds) == 0


async def test_a_background_process_does_not_hold_the_answer(sandbox: Sandbox) -> None:
    started = time.monotonic()
    assert (await sandbox.run("sleep 7775 & echo started")).stdout == "started\n"
    assert (await sandbox.run("exit 4")).exit_code == 4
    assert time.monotonic() - started < 10
    await until_running(sandbox, "7775")


async def test_what_the_background_says_is_seen_by_the_next_command(sandbox: Sandbox) -> None:
    await sandbox.run("(sleep 0.2; echo later; : > /tmp/said) &")
    await sandbox.run("until [[ -e /tmp/said ]]; do sleep 0.05; done", shell="observer")
    assert (await sandbox.run("echo next")).stdout == "later\nnext\n"


async def test_a_cancelled_command_is_killed(sandbox: Sandbox) -> None:
    command = asyncio.create_task(sandbox.run("sleep 7776", timeout_s=600))
    await until_running(sandbox, "7776")
    command.cancel()
    with pytest.raises(asyncio.CancelledError):
        await command
    deadline = time.monotonic() + 10
    while await running(sandbox, "7776"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    assert (await sandbox.run("echo next")).stdout == "next\n"


async def test_killing_everything_leaves_the_sandbox(sandbox: Sandbox) -> None:
    await sandbox.run("cd /tmp")
    await sandbox.run("kill -9 -1; kill -9 $$")
    assert (await sandbox.run("pwd")).stdout == "/tmp\n"
    assert (await sandbox.run("sleep 600", timeout_s=0.3)).timed_out


MEMORY_HOG = "for i in 1 2 3 4; do (head -c 60000000 /dev/zero | tail -c 50000000 | sleep 50) & done; sleep 50"
FORK_BOMB = "bomb() { bomb | bomb & }; bomb; sleep 50"
DISK_FILLER = "for ((i = 0; ; i++)); do head -c 20000000 /dev/zero > /tmp/$i; sleep 0.1; done"


@pytest.mark.parametrize(
    ("hog", "resource", "sizes"),
    [
        (MEMORY_HOG, "memory", {"memory_mb": 100}),
        (FORK_BOMB, "processes", {"pids": 50}),
        (DISK_FILLER, "disk", {"disk_mb": 50}),
    ],
)
async def test_going_over_a_size_is_a_result_and_the_neighbour_does_not_notice(
    backend: Backend, sandbox: Sandbox, hog: str, resource: str, sizes: dict[str, int]
) -> None:
    backend.require_warden()
    greedy = await backend.start(**sizes)
    await greedy.run("cd /tmp; export KEPT=yes")
    done = asyncio.create_task(greedy.run(hog, timeout_s=60))
    neighbour = await sandbox.run("for i in {1..8}; do true | true && sleep 0.2; done && echo fine", timeout_s=60)
    assert (neighbour.stdout, neighbour.stderr, neighbour.excess) == ("fine\n", "", None)
    result = await done
    assert (result.exit_code, result.timed_out) == (137, False)
    assert result.excess is not None
    assert result.excess.resource == resource
    assert result.excess.used > result.excess.allowed == next(iter(sizes.values()))
    after = await greedy.run("pwd; echo $KEPT; rm -f /tmp/*")
    assert (after.exit_code, after.stdout, after.excess) == (0, "/tmp\nyes\n", None)
    await greedy.stop()


async def test_a_sandbox_ends_with_its_wall_time(backend: Backend) -> None:
    started = time.monotonic()
    sandbox = await backend.start(wall_s=2)
    assert (await sandbox.run("echo in time")).stdout == "in time\n"
    with pytest.raises(SandboxExpired):
        await sandbox.run("sleep 600", timeout_s=900)
    assert time.monotonic() - started > 2
    with pytest.raises(SandboxExpired):
        await sandbox.run("true")
    with pytest.raises(SandboxExpired):
        await sandbox.read_file("/etc/passwd")
    await sandbox.stop()


async def test_memory_that_processes_share_counts_once(backend: Backend) -> None:
    sandbox = await backend.start(memory_mb=100)
    shared = "printf -v text %30000000s; for i in 1 2 3 4; do (read -rt 2 <> <(:)) & done; wait; echo ${#text}"
    result = await sandbox.run(shared, timeout_s=60)
    assert (result.stdout, result.excess) == ("30000000\n", None)
    await sandbox.stop()


async def test_what_runs_in_the_background_counts(backend: Backend) -> None:
    backend.require_warden()
    sandbox = await backend.start(pids=20)
    excess = (await sandbox.run("for i in {1..40}; do sleep 7777 & done")).excess
    deadline = time.monotonic() + 20
    while excess is None:
        assert time.monotonic() < deadline
        excess = (await sandbox.run("sleep 0.1")).excess
    assert excess.resource == "processes"
    assert await running(sandbox, "7777") == 0
    await sandbox.stop()


async def test_a_cpu_hog_is_confined_to_its_cpus(backend: Backend) -> None:
    backend.require_warden()
    sandbox = await backend.start(cpus=0.05)
    hog = "for i in 1 2 3 4; do while :; do :; done & done; sleep 4; while read -r key list; do "
    result = await sandbox.run(hog + "[[ $key == Cpus_allowed_list: ]] && echo $list; done < /proc/self/status; :")
    assert result.stdout.strip().isdigit() or await asyncio.to_thread(was_throttled, sandbox.id), "more than one CPU"
    assert result.excess is None
    await sandbox.stop()


async def test_there_is_no_network(sandbox: Sandbox) -> None:
    result = await sandbox.run("while read -r name rest; do echo $name; done < /proc/net/dev")
    assert [line for line in result.stdout.splitlines() if ":" in line] == ["lo:"]


@pytest.mark.parametrize("bad", ["a\0b", "\0"])
async def test_a_nul_byte_is_refused(sandbox: Sandbox, bad: str) -> None:
    with pytest.raises(ValueError, match="NUL"):
        await sandbox.run(bad)
    with pytest.raises(ValueError, match="NUL"):
        await sandbox.run("true", shell=bad)


@pytest.mark.parametrize("timeout_s", [0, -1])
async def test_a_timeout_is_positive(sandbox: Sandbox, timeout_s: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        await sandbox.run("true", timeout_s=timeout_s)


@pytest.mark.parametrize("path", ["/tmp/plain", "/tmp/with space/and 日本", "/testbed/new/deep/file"])
@pytest.mark.parametrize("data", [b"", b"text\n", bytes(range(256)) * 100], ids=["empty", "text", "binary"])
async def test_files_come_back_as_they_went(sandbox: Sandbox, path: str, data: bytes) -> None:
    await sandbox.write_file(path, data)
    assert await sandbox.read_file(path) == data
    assert (await sandbox.run(f"wc -c < '{path}'")).stdout.strip() == str(len(data))


async def test_a_large_file(sandbox: Sandbox) -> None:
    data = secrets.token_bytes(50_000_000)
    await sandbox.write_file("/tmp/large", data)
    assert await sandbox.read_file("/tmp/large") == data


async def test_a_file_that_would_fill_the_memory_is_not_read(sandbox: Sandbox) -> None:
    """The size that a program of the sandbox told may have been another's."""
    await sandbox.run(f"head -c {READ_LIMIT_MB}M /dev/zero > /tmp/most; (cat /tmp/most; echo) > /tmp/more")
    assert await sandbox.read_file("/tmp/most") == bytes(READ_LIMIT_MB << 20)
    with pytest.raises(FileTooLarge, match=f"/tmp/more: larger than {READ_LIMIT_MB} MiB"):
        await sandbox.read_file("/tmp/more")


async def test_writing_keeps_the_mode_and_follows_a_link(sandbox: Sandbox) -> None:
    await sandbox.run("echo old > /tmp/tool; chmod 751 /tmp/tool; ln -s tool /tmp/link; ln -s /tmp /testbed/way")
    await sandbox.write_file("/tmp/link", b"new")
    assert (await sandbox.run("cat /tmp/tool; stat -c ' %a %F' /tmp/tool /tmp/link")).stdout == (
        "new 751 regular file\n 777 symbolic link\n"
    )
    assert await sandbox.read_file("/testbed/way/link") == b"new"


async def test_a_written_file_is_new(sandbox: Sandbox) -> None:
    """A time in the past would make Python and make take the stale result of an older source."""
    await sandbox.run("touch /tmp/before; sleep 1.1")
    await sandbox.write_file("/tmp/after", b"")
    assert (await sandbox.run("[[ /tmp/after -nt /tmp/before ]]")).exit_code == 0


@pytest.mark.parametrize("path", ["/nothing/here", "/tmp", "/dev/null", "/tmp/dangling"])
async def test_what_is_no_file_is_missing(sandbox: Sandbox, path: str) -> None:
    await sandbox.run("ln -s /nothing /tmp/dangling")
    with pytest.raises(FileMissing):
        await sandbox.read_file(path)


@pytest.mark.parametrize("path", ["relative", "", "/tmp/\0"])
async def test_a_path_is_absolute(sandbox: Sandbox, path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        await sandbox.read_file(path)
    with pytest.raises(ValueError, match="path"):
        await sandbox.write_file(path, b"")


async def test_a_directory_is_not_overwritten(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="not a regular file"):
        await sandbox.write_file("/tmp", b"")


async def test_a_link_leads_nowhere_outside(sandbox: Sandbox, tmp_path: Path) -> None:
    """Neither to a file of the node, nor by way of one of its directories."""
    secret = tmp_path / "secret"
    secret.write_text("the node's")
    up = "/.." * 20
    await sandbox.run(f"ln -s {up}{secret} /tmp/file; ln -s {up}{tmp_path} /tmp/directory")
    paths = ("/tmp/file", "/tmp/directory/secret", f"/tmp{up}{secret}")
    for path in paths:
        with pytest.raises((FileMissing, NotRight)):  # a server takes no path with `..`
            await sandbox.read_file(path)
    for path in paths:
        with contextlib.suppress(ValueError):  # refused, or written to the place of that name in the sandbox
            await sandbox.write_file(path, b"the sandbox's")
        assert secret.read_text() == "the node's"
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


async def test_modes_do_not_keep_root_out_and_stay_as_they_are(backend: Backend, sandbox: Sandbox) -> None:
    backend.require_root()
    await sandbox.run("mkdir -m 000 /tmp/closed; echo old > /tmp/closed/file; chmod 4000 /tmp/closed/file")
    assert await sandbox.read_file("/tmp/closed/file") == b"old\n"
    await sandbox.write_file("/tmp/closed/file", b"new")
    said = await sandbox.run("cat /tmp/closed/file; stat -c ' %a' /tmp/closed /tmp/closed/file")
    assert said.stdout.split()[:2] == ["new", "0"]


async def test_a_full_file_system_is_a_result(backend: Backend, sandbox: Sandbox) -> None:
    if backend.is_the_user:
        pytest.skip("who may not mount has /dev/shm on disk, where disk_mb holds")
    result = await sandbox.run("head -c 1000000000 /dev/zero > /dev/shm/large")
    assert (result.exit_code, result.excess) == (1, None)
    assert "No space left" in result.stderr
    assert (
        await sandbox.run("rm /dev/shm/large && echo more > /dev/shm/small && cat /dev/shm/small")
    ).stdout == "more\n"


async def test_a_sandbox_cannot_see_or_signal_another(backend: Backend, sandbox: Sandbox) -> None:
    other = await backend.start()
    await other.run("sleep 7778 & echo mine > /tmp/mine")
    assert await running(sandbox, "7778") == 0
    assert (await sandbox.run("kill -9 -1; ls /tmp/mine")).exit_code != 0
    assert (await sandbox.run("ls /tmp/mine")).exit_code != 0
    await until_running(other, "7778")
    await other.stop()


async def test_a_paused_sandbox_stands_still_and_goes_on(sandbox: Sandbox) -> None:
    """With what runs in the background, and with a command that is on its way."""
    clock = "while sleep 0.05; do echo $EPOCHREALTIME >> /tmp/clock; done"
    await sandbox.run(f"setsid bash -c '{clock}' & sleep 0.5")
    command = asyncio.create_task(sandbox.run("sleep 0.6; echo done", timeout_s=30))
    await asyncio.sleep(0.2)
    await sandbox.pause()
    await asyncio.sleep(2)
    assert not command.done()
    await sandbox.resume()
    assert (await command).stdout == "done\n"
    until_it_ticks = "n=$(wc -l < /tmp/clock); until (($(wc -l < /tmp/clock) > n)); do sleep 0.05; done"
    times = [float(line) for line in (await sandbox.run(f"{until_it_ticks}; cat /tmp/clock")).stdout.split()]
    assert max(later - sooner for sooner, later in pairwise(times)) > 1.5


async def test_a_lost_sandbox_is_said_at_once(backend: Backend) -> None:
    """And not when the command's time is over, which is later than this test's."""
    sandbox = await backend.start()
    command = asyncio.create_task(sandbox.run("sleep 600", timeout_s=900))
    await asyncio.sleep(0.3)
    await backend.lose(sandbox)
    with pytest.raises(SandboxLost):
        await command
    with pytest.raises(SandboxLost):
        await sandbox.run("true")
    with pytest.raises(SandboxLost):
        await sandbox.read_file("/etc/passwd")
    with pytest.raises(SandboxLost):
        await sandbox.write_file("/tmp/x", b"")
    await sandbox.stop()


async def test_stopping_twice(backend: Backend) -> None:
    sandbox = await backend.start()
    await sandbox.stop()
    await sandbox.stop()
    with pytest.raises(SandboxLost):
        await sandbox.run("true")


async def test_stopping_ends_a_running_command(backend: Backend) -> None:
    sandbox = await backend.start()
    command = asyncio.create_task(sandbox.run("sleep 600", timeout_s=900))
    await asyncio.sleep(0.3)
    await sandbox.stop()
    with pytest.raises(SandboxLost):
        await command


@pytest.mark.parametrize("wrong", [{"image": "localhost/no/such:image"}, {"workdir": "/no/such/directory"}])
async def test_what_cannot_start_says_why(backend: Backend, wrong: dict[str, str]) -> None:
    with pytest.raises(SandboxStartFailed, match="no/such"):
        await backend.start(**wrong)


async def test_many_at_once(backend: Backend) -> None:
    sandboxes = await asyncio.gather(*(backend.start() for _ in range(4)))
    results = await asyncio.gather(*(sandbox.run("touch mine; ls") for sandbox in sandboxes))
    assert [result.stdout for result in results] == ["mine\n"] * 4
    await asyncio.gather(*(sandbox.stop() for sandbox in sandboxes))
