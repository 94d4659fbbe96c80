"""Ports: listening sockets, new ones and those of a server before this one."""

import socket

from skyrl_stack.sandbox.keeping import Kept

BACKLOG = 2048


def open_port(host: str) -> socket.socket:
    """A listening socket on a free port of `host`.

    Its protocol is named, because asyncio switches Nagle's delay off (40 ms per call) only where it is.
    """
    family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    place = socket.socket(family, kind, socket.IPPROTO_TCP)
    try:
        place.bind(address)
        place.listen(BACKLOG)
    except OSError:
        place.close()
        raise
    return place


def inherited_port(kept: Kept) -> socket.socket:
    """The listening socket that is kept; who connected meanwhile waits in its queue."""
    return socket.socket(fileno=kept.descriptors[0])
