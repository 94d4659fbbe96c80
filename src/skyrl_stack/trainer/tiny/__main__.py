"""Makes the tiny model alone: `python -m skyrl_stack.trainer.tiny --run-dir DIR`, with the run's runtime up."""

import argparse
import sys
from pathlib import Path

from skyrl_stack.errors import StackError
from skyrl_stack.run_directory import RunDirectory
from skyrl_stack.trainer.tiny.make import find_or_make


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m skyrl_stack.trainer.tiny", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    try:
        directory = RunDirectory.open(parser.parse_args().run_dir)
        print(find_or_make(directory, directory.profile()))
    except StackError as error:
        print(f"model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
