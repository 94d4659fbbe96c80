"""Where the ranks of one process group meet: a port that the first of them takes when it needs it.

verl looks for a free port minutes before it is used, and another program of the node may have it by then. So the first
rank lets the kernel choose, and tells the others through Ray. verl's processes import this module
(`VERL_USE_EXTERNAL_MODULES`), and verl hands `METHOD` on to torch (`DIST_INIT_METHOD`).
"""

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NoReturn

import ray.experimental.internal_kv as cluster
from torch._C._distributed_c10d import Store, TCPStore  # where torch.distributed has them from
from torch.distributed.constants import default_pg_timeout
from torch.distributed.rendezvous import register_rendezvous_handler

METHOD = "skyrl://"
_POLL_S = 0.1


def _meet(url: str, timeout: timedelta = default_pg_timeout, **_: Any) -> Iterator[tuple[Store, int, int]]:
    """torch's rendezvous handler, of which it takes the first item: the group's store, our rank and their number."""
    rank, size, host = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), os.environ["MASTER_ADDR"]
    # What verl meant for the port is a good name for the group: no two of a run have prefix and port in common.
    group = f"skyrl-rendezvous-{os.environ.get('WG_PREFIX', '')}-{host}-{os.environ['MASTER_PORT']}"
    if rank == 0:
        store = TCPStore(host, 0, size, is_master=True, timeout=timeout, wait_for_workers=False)
        cluster._internal_kv_put(group, str(store.port))
    else:
        store = TCPStore(host, _port(group, timeout), size, is_master=False, timeout=timeout)
    yield store, rank, size
    _refuse_another()


def _port(group: str, timeout: timedelta) -> int:
    deadline = time.monotonic() + timeout.total_seconds()
    while (port := cluster._internal_kv_get(group)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank 0 of {group} did not show itself within {timeout}")
        time.sleep(_POLL_S)
    return int(port)


def _refuse_another() -> NoReturn:
    raise RuntimeError("these ranks can meet once")


register_rendezvous_handler(METHOD.removesuffix("://"), _meet)
