"""System calls that Python lacks: overlay mounts, opening a file with a directory as root, keyrings, news of files.

Source: mount(2), umount2(2), openat2(2), keyctl(2), inotify(7).
"""

import ctypes
import os
import platform
import struct

_LIBC = ctypes.CDLL(None, use_errno=True)
_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10
_MNT_DETACH = 2
_KEYCTL = {"x86_64": 250, "aarch64": 219, "ppc64le": 271}
_KEYCTL_JOIN_SESSION_KEYRING = 1
_IN_MODIFY = 0x2
_EVENT = struct.Struct("iIII")


def mount_overlay(target: str, options: str) -> None:
    """Mount an overlay file system. Paths in `options` may be relative, and should: there is room for 4096 bytes."""
    _check(_LIBC.mount(b"overlay", os.fsencode(target), b"overlay", 0, os.fsencode(options)), target)


def unmount(target: str) -> None:
    """Take a mount away now; it ends when nobody uses it any more."""
    _check(_LIBC.umount2(os.fsencode(target), _MNT_DETACH), target)


def open_in_root(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` as a process would see it whose root is the directory `root`: no link and no `..` leads out of it.

    Raises:
        OSError: as of open(2).
    """
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, mode, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    opened = _LIBC.syscall(_OPENAT2, root, ctypes.c_char_p(os.fsencode(path)), ctypes.c_char_p(how), len(how))
    _check(opened, path)
    return int(opened)


def leave_session_keyring() -> None:
    """Have an empty session keyring from now on, as all children will, in place of the user's own.

    Raises:
        OSError: as of keyctl(2); this machine or its seccomp filter has no keyrings.
    """
    number = _KEYCTL.get(platform.machine(), -1)
    _check(_LIBC.syscall(number, _KEYCTL_JOIN_SESSION_KEYRING, None), "session keyring")


def open_news() -> int:
    """A descriptor that tells of files that were modified; it does not block.

    Raises:
        OSError: as of inotify_init1(2); a user may have 128 of them.
    """
    descriptor = _LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    _check(descriptor, "inotify")
    return int(descriptor)


def ask_for_news(news: int, path: str) -> int:
    """The number under which `news` tells of a file from now on."""
    number = _LIBC.inotify_add_watch(news, os.fsencode(path), _IN_MODIFY)
    _check(number, path)
    return int(number)


def read_news(news: int) -> set[int]:
    """The numbers of files that were modified, or are gone, since this was asked last."""
    try:
        data = os.read(news, 65536)
    except BlockingIOError:
        return set()
    numbers, at = set[int](), 0
    while at < len(data):
        number, _, _, length = _EVENT.unpack_from(data, at)
        numbers.add(number)
        at += _EVENT.size + length
    return numbers


def _check(result: int, path: str) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)
