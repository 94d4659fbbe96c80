"""`python -m skyrl_stack.factory --run-dir DIR`: a run's tasks, and their images on this node; for the launcher."""

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from skyrl_stack.errors import SetupError, StackError
from skyrl_stack.factory.given import given_tasks
from skyrl_stack.factory.handover import await_images
from skyrl_stack.factory.make import make_tasks, write_tasks
from skyrl_stack.records import write_atomic
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.sandbox.providers import why_apptainer
from skyrl_stack.sandbox.storage import cache_dir


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m skyrl_stack.factory", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    logging.basicConfig(format="tasks: %(message)s", stream=sys.stdout)
    logging.getLogger("skyrl_stack.sandbox.locks").setLevel(logging.INFO)  # says when it waits for another launch
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that sandboxes and files go first
    try:
        provide(RunDirectory.open(parser.parse_args().run_dir))
    except StackError as error:
        print(f"factory: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def provide(directory: RunDirectory) -> None:
    """Write the tasks of the run: those of `tasks.file`, or else made; or get what another node has made of them.

    Raises:
        StackError: they cannot be had; says why.
    """
    profile = directory.profile()
    section, socket = profile.tasks, profile.runtime.podman_socket
    no_cell = "" if socket else why_apptainer()
    if not socket and not no_cell and asyncio.run(await_images(directory, say)):
        return
    if section.file is not None:
        given = given_tasks(
            section.file, say, unverified=section.unverified, pulling=section.pull, podman_socket=socket
        )
        tasks = asyncio.run(given)
        write_tasks(directory.tasks_file, tasks)
    elif no_cell:
        raise SetupError(f"tasks are made by Podman, which finds no place here ({no_cell}); name a file by tasks.file")
    else:
        path = asyncio.run(make_tasks(section, cache_dir(), say))
        write_atomic(directory.tasks_file, path.read_bytes())


def say(line: str) -> None:
    print(f"tasks: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
