"""What a sandbox costs: starts, commands, files and memory through the API, beside `podman run` and the bare runtime.

    python benchmarks/sandboxes.py [--image REFERENCE] [--rounds 20] [--at-once 64] [--alive 256] [--big-mb 1024]
        [--beside PYTHON] [--plot docs/runtime-starts.svg]

All in one run, the things that are compared in turns, so that what else the machine does falls on each of them.
"""

import argparse
import asyncio
import json
import os
import secrets
import shlex
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import beside
import httpx
from plot import strips
from rich.console import Console
from rich.table import Table

from skyrl_stack.profile import RuntimeSection
from skyrl_stack.records import Endpoint
from skyrl_stack.runtime.client import RemoteSandbox, RuntimeClient
from skyrl_stack.runtime.server import serving
from skyrl_stack.sandbox import namespaces
from skyrl_stack.sandbox.contract import SandboxSpec
from skyrl_stack.sandbox.images import image_store_path
from skyrl_stack.sandbox.oci import Patterns
from skyrl_stack.sandbox.podman import PodmanSandboxes
from skyrl_stack.sandbox.podman_config import storage_options

TOKEN = "benchmark"
IDLE_S = 10.0
STARTS = ("create → first command, our API", "podman run --rm IMAGE true", "OCI runtime and overlay alone")


class Results:
    """Rows of the table, in order."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []
        self.samples: dict[str, list[float]] = {}
        "Seconds, by what took them."

    def add(self, what: str, value: str) -> None:
        self.rows.append((what, value))
        print(f"{what}: {value}", flush=True)

    def times(self, what: str, seconds: list[float]) -> float:
        """P50 and P95 in ms; returns the P50 in seconds."""
        ordered = self.samples[what] = sorted(seconds)
        p50, p95 = statistics.median(ordered), ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
        self.add(what, f"P50 {p50 * 1e3:.1f} ms, P95 {p95 * 1e3:.1f} ms (n = {len(ordered)})")
        return p50


async def timed[T](work: Awaitable[T]) -> tuple[float, T]:
    began = time.perf_counter()
    result = await work
    return time.perf_counter() - began, result


class Cold:
    """Programs that are run in the cell of a runtime, as its root: `podman run`, and the OCI runtime alone."""

    def __init__(self, podman: PodmanSandboxes, image: str) -> None:
        assert podman._cell
        assert podman._api
        self.cell, self.api, self.image = podman._cell, podman._api, image
        helper = self.cell.helper
        self.first = int(Path(f"/proc/{helper}/task/{helper}/children").read_text().split()[0])
        "Process 1 of the cell."

    @property
    def podman(self) -> list[str]:
        """Argv of a Podman that has the same images and storage."""
        runroot = self.cell.directory / "run/storage"
        return ["podman", *storage_options(self.cell.graphroot, runroot, self.cell.image_stores, namespaces.id_map())]

    async def podman_run(self) -> float:
        """Seconds of `podman run --rm IMAGE true`."""
        command = shlex.join([*self.podman, "run", "--rm", "--network=none", self.image, "true"])
        return await asyncio.to_thread(self.inside, command)

    async def bare(self) -> float:
        """Seconds of an overlay mount, the OCI runtime's `run` of `true`, and its removal; without Podman."""
        patterns, name = Patterns(self.cell.image_stores), f"bare-{secrets.token_hex(4)}"
        spec = SandboxSpec(image=self.image)
        description = await self.api.in_thread(lambda: patterns.describe(self.api, name, spec))
        bundle = self.cell.directory / "scratch" / name
        config = json.loads(json.dumps(description.config))
        config["process"]["args"] = ["/bin/bash", "-c", "true"]
        config["mounts"] = [mount for mount in config["mounts"] if mount["source"] not in description.files]
        prepare = f"mkdir -p {bundle}/root {bundle}/up {bundle}/work; cat > {bundle}/config.json"
        options = f"lowerdir={':'.join(description.layers)},upperdir={bundle}/up,workdir={bundle}/work,userxattr"
        command = (
            f"mount -t overlay overlay -o {options} {bundle}/root; "
            f"{self.cell.runtime} --root {bundle}/state run --bundle {bundle} {name}; "
            f"umount {bundle}/root; rm -rf {bundle}"
        )
        return await asyncio.to_thread(self.inside, command, prepare, json.dumps(config))

    def inside(self, command: str, prepare: str = "true", data: str = "") -> float:
        """Seconds that a shell in the cell takes for `command`."""
        script = f"{prepare}; began=$EPOCHREALTIME; {command} >&2; code=$?; echo $began $EPOCHREALTIME $code"
        argv = ["nsenter", f"--target={self.first}", "-U", "-m", "-p", "-S", "0", "-G", "0", "/bin/bash", "-c"]
        done = subprocess.run(
            [*argv, script], input=data, env=self.cell.environment, capture_output=True, text=True, check=False
        )
        if not done.stdout or done.stdout.split()[2] != "0":
            raise SystemExit(f"{command}: {done.stderr}")
        began, ended, _ = done.stdout.split()
        return float(ended) - float(began)


async def starts(client: RuntimeClient, cold: Cold, image: str, rounds: int, results: Results) -> None:
    """Create to first command finished, beside what else could start a container."""
    ours, podman, bare = list[float](), list[float](), list[float]()
    for _ in range(rounds + 1):

        async def first_command() -> RemoteSandbox:
            sandbox = await client.start(SandboxSpec(image=image))
            assert (await sandbox.run("true")).exit_code == 0
            return sandbox

        seconds, sandbox = await timed(first_command())
        ours.append(seconds)
        await sandbox.stop()
        podman.append(await cold.podman_run())
        bare.append(await cold.bare())
    p50, reference, floor = (
        results.times(what, times[1:]) for what, times in zip(STARTS, (ours, podman, bare), strict=True)
    )
    results.add("ratio to `podman run`", f"{p50 / reference:.2f}")
    results.add("ratio to the bare runtime", f"{p50 / floor:.2f}")


async def commands(sandbox: RemoteSandbox, url: str, rounds: int, results: Results) -> None:
    """Round trips on a live sandbox: by our client, and by the calls that OpenHands' client makes."""
    seconds = [(await timed(sandbox.run("true")))[0] for _ in range(10 * rounds)]
    results.times("command round trip, our client", seconds[5:])
    base, headers = sandbox._info.url, sandbox._headers
    async with httpx.AsyncClient(base_url=base, headers=headers, trust_env=False, timeout=60) as http:

        async def as_openhands() -> int:
            started = await http.post("/api/bash/start_bash_command", json={"command": "true", "timeout": 60})
            polls = 0
            while True:
                polls += 1
                query = {"command_id__eq": started.json()["id"], "order__gt": -1}
                found = await http.get("/api/bash/bash_events/search", params=query)
                if found.json()["items"]:
                    return polls
                await asyncio.sleep(0.1)

        pairs = [await timed(as_openhands()) for _ in range(10 * rounds)]
    results.times("command round trip, APIRemoteWorkspace's calls", [seconds for seconds, _ in pairs[5:]])
    results.add("searches that each of them needed", str(max(polls for _, polls in pairs)))


async def others(cold: Cold, python: Path, rounds: int, results: Results) -> None:
    """Services of the same kind, beside what `starts` and `commands` measure."""
    for service in beside.SERVICES:
        done = [await beside.measure(service, cold.inside, cold.podman, cold.image, python, 50) for _ in range(rounds)]
        results.times(f"create → first command, {service.name}", [first for first, _ in done[1:]])
        results.times(f"command round trip, {service.name}", [each for _, trips in done[1:] for each in trips])


async def many(client: RuntimeClient, image: str, count: int, results: Results) -> None:
    """All at once."""

    async def first_command() -> RemoteSandbox:
        sandbox = await client.start(SandboxSpec(image=image))
        await sandbox.run("true")
        return sandbox

    done = await asyncio.gather(*(timed(first_command()) for _ in range(count)), return_exceptions=True)
    good = [pair for pair in done if not isinstance(pair, BaseException)]
    results.times(f"{count} creates at once, each to its first command", [seconds for seconds, _ in good])
    results.add("of them succeeded", f"{100 * len(good) / count:.0f} %")
    await asyncio.gather(*(sandbox.stop() for _, sandbox in good))


async def alive(client: RuntimeClient, image: str, count: int, results: Results) -> None:
    """Many idle ones: memory that is ours, and what they cost while nothing happens."""
    before = sum(map(_memory, _family()))
    sandboxes = await asyncio.gather(*(client.start(SandboxSpec(image=image)) for _ in range(count)))
    after = sum(map(_memory, _family()))
    results.add(f"memory for each of {count} idle sandboxes, its shell included", f"{(after - before) / count:.2f} MiB")
    ours, own, began = sum(map(_cpu, _family())), time.process_time(), time.monotonic()
    await asyncio.sleep(IDLE_S)
    elapsed = time.monotonic() - began
    results.add(f"CPU of the server at {count} idle", f"{100 * (time.process_time() - own) / elapsed:.1f} %")
    share = (sum(map(_cpu, _family())) - ours) / elapsed
    results.add("the same, with broker, warden and all that is in the sandboxes", f"{100 * share:.1f} %")
    await asyncio.gather(*(sandbox.stop() for sandbox in sandboxes))


def _family() -> list[int]:
    """This process, and all that came of it: the cell, broker and warden, what is in the sandboxes."""
    parents = dict[int, int]()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    family = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return sorted(family)


def _memory(pid: int) -> float:
    """MiB; of a page that n processes share each has 1/n."""
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/smaps_rollup").read_text().partition("\nPss:")[2].split()[0]) / 1024
    return 0.0


def _cpu(pid: int) -> float:
    """CPU seconds."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


async def bulk(sandbox: RemoteSandbox, files: int, big_mb: int, results: Results) -> None:
    """Much of everything, and by how much this process grew meanwhile."""
    before = _peak_mb()
    seconds, result = await timed(sandbox.run("head -c 100000000 /dev/zero | tr '\\0' x", timeout_s=300))
    results.add("100 MB of stdout", f"{seconds:.1f} s, {result.truncated_bytes} bytes of it cut")
    gate = asyncio.Semaphore(16)

    async def up_and_down(number: int) -> None:
        async with gate:
            await sandbox.write_file(f"/tmp/many/{number}", b"x" * 1000)
            assert len(await sandbox.read_file(f"/tmp/many/{number}")) == 1000

    seconds, _ = await timed(asyncio.gather(*(up_and_down(number) for number in range(files))))
    results.add(f"{files} files up and down", f"{seconds:.1f} s")
    with tempfile.TemporaryDirectory() as directory:
        big, back = Path(directory, "big"), Path(directory, "back")
        big.touch()
        os.truncate(big, big_mb << 20)
        up, _ = await timed(sandbox.upload(big, "/tmp/big"))
        down, _ = await timed(sandbox.download("/tmp/big", back))
        assert back.stat().st_size == big_mb << 20
    results.add(f"a file of {big_mb} MiB up, down", f"{up:.1f} s, {down:.1f} s")
    results.add("growth of client and server together meanwhile", f"{_peak_mb() - before:.0f} MiB")


def _peak_mb() -> float:
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


async def measure(arguments: argparse.Namespace) -> Results:
    results = Results()
    store = image_store_path(arguments.cache)
    there = json.loads((store / "overlay-images/images.json").read_bytes())
    names = [name for image in there for name in image.get("names") or ()]
    image = arguments.image or next(name for name in names if "/task:" in name)
    section = RuntimeSection(max_sandboxes=arguments.alive + 1, lease_s=3600)
    async with AsyncExitStack() as stack:
        sandboxes = PodmanSandboxes(secrets.token_hex(8), image_stores=[store])
        podman = await stack.enter_async_context(sandboxes)
        served = await stack.enter_async_context(serving(podman, section, TOKEN))
        client = RuntimeClient(Endpoint(launch_id="benchmark", url=served.url, token=TOKEN))
        await stack.enter_async_context(client)
        cold = Cold(podman, image)
        parts: dict[str, Callable[[], Awaitable[Any]]] = {
            "starts": lambda: starts(client, cold, image, arguments.rounds, results),
            "many": lambda: many(client, image, arguments.at_once, results),
            "alive": lambda: alive(client, image, arguments.alive, results),
        }
        for part in parts.values():
            await part()
        sandbox = await client.start(SandboxSpec(image=image))
        await commands(sandbox, served.url, arguments.rounds, results)
        if arguments.beside:
            await others(cold, arguments.beside, 1 + arguments.rounds // 6, results)
        await bulk(sandbox, arguments.files, arguments.big_mb, results)
        await sandbox.stop()
    return results


def main() -> None:
    """The program's entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", help="of the image store; the first task of the factory's")
    parser.add_argument("--cache", type=Path, help="the cache that holds the image store")
    parser.add_argument("--beside", type=Path, help="prefix of a Python that has swe-rex and openhands-agent-server")
    parser.add_argument("--plot", type=Path, help="SVG of the times of starts")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=64)
    parser.add_argument("--alive", type=int, default=256)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--big-mb", type=int, default=1024)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    results = asyncio.run(measure(arguments))
    if arguments.plot:
        names = [*STARTS, *(f"create → first command, {service.name}" for service in beside.SERVICES)]
        samples = {name: results.samples[name] for name in names if name in results.samples}
        arguments.plot.write_text(strips("What it takes to start a sandbox and run `true` in it", samples))
    table = Table(title=f"{os.cpu_count()} CPUs, load {load:.1f} before and {os.getloadavg()[0]:.1f} after")
    table.add_column("what")
    table.add_column("value", justify="right")
    for row in results.rows:
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
