"""The runtime's process: `python -m skyrl_stack.runtime --run-dir DIR` serves sandboxes until the run ends."""

import sys

from skyrl_stack.runtime.keeper import Keeper

if __name__ == "__main__":
    sys.exit(Keeper(sys.argv[1:]).run())
