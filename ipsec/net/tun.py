"""The TUN device: create it, attach to one that the operator prepared, or take over an inherited descriptor.

Kernel interface: linux/if_tun.h and Documentation/networking/tuntap.rst. Reads and writes of packets belong to the
data path; this module only opens, configures and closes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from ipsec.errors import BackendError
from ipsec.net import grants

DEVICE_NODE = "/dev/net/tun"

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_TUNSETGROUP = 0x400454CE
_TUNSETOFFLOAD = 0x400454D0
_TUNGETIFF = 0x800454D2
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_MULTI_QUEUE = 0x0100
_IFF_PERSIST = 0x0800
_TUN_F_CSUM = 0x01
_TUN_F_TSO4 = 0x02
_TUN_F_TSO6 = 0x04
_TUN_F_USO4 = 0x20
_TUN_F_USO6 = 0x40

_IFREQ = struct.Struct("16sH22x")
_IFNAMSIZ = 16
VNET_HDR_LEN = 10
"octets of struct virtio_net_hdr in front of each packet when ``vnet_hdr`` is on"

GRANT_ADMIN = f"{grants.capability('NET_ADMIN')}, or have the device made: ipsecd --prepare"


@dataclass
class Tun:
    """An open TUN device, one descriptor per queue. The owner calls ``close`` once nothing uses the queues."""

    name: str
    fds: list[int]
    vnet_hdr: bool
    "each read and write starts with a struct virtio_net_hdr"
    tso: bool
    "TCP superframes are on"
    uso: bool
    "UDP superframes are on (Linux 6.2)"
    refused: dict[str, str] = field(default_factory=dict)
    "offload -> why the kernel has it not"

    @property
    def index(self) -> int:
        """The interface index now. OSError if the device is gone."""
        return socket.if_nametoindex(self.name)

    def close(self) -> None:
        """Close every queue. A device that is not persistent goes away with its last queue."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


def open_tun(name: str, *, queues: int = 1, tso: bool = True, uso: bool = True) -> Tun:
    """Create the device ``name`` (``%d`` in it picks a free number), or attach to a persistent one of that name.

    ``queues`` is how many descriptors are wanted. Raises BackendError that says what to do.
    """
    _check_name(name)
    multi = queues > 1
    existed = device_exists(name)
    flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
    first = _open_node()
    fds = [first]
    try:
        try:
            real = _set_iff(first, name, flags | (_IFF_MULTI_QUEUE if multi else 0))
        except OSError as error:
            # A persistent device keeps the queue flavour it was made with, and refuses the other one with EINVAL.
            if error.errno != errno.EINVAL:
                raise
            if multi:
                raise BackendError(
                    f"device {name} exists and has a single queue, {queues} workers were asked for",
                    remedy=f"make it with 'ip tuntap add dev {name} mode tun multi_queue', or set workers to 1",
                ) from error
            real = _set_iff(first, name, flags | _IFF_MULTI_QUEUE)
        if existed and not _get_iff(first)[1] & _IFF_PERSIST:
            # A second reader would take packets from whoever made it and has it open.
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        for _ in range(1, queues):
            fd = _open_node()
            fds.append(fd)
            _set_iff(fd, real, flags | _IFF_MULTI_QUEUE)
    except (OSError, BackendError) as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, OSError):
            raise _explain(name, error) from error
        raise
    return _finish(fds, tso=tso, uso=uso)


def tun_from_fd(fd: int, *, tso: bool = True, uso: bool = True) -> Tun:
    """Take over one open TUN queue, as a supervisor hands it down. The descriptor is ours from here on."""
    try:
        _, flags = _get_iff(fd)
    except OSError as error:
        raise BackendError(
            f"descriptor {fd} is not an attached TUN queue: {os.strerror(error.errno or 0)}",
            remedy="hand down a descriptor on which TUNSETIFF was done",
        ) from error
    if not flags & _IFF_TUN or not flags & _IFF_NO_PI:
        raise BackendError(
            f"descriptor {fd} is a TAP queue or carries packet information",
            remedy="open it with IFF_TUN|IFF_NO_PI",
        )
    os.set_blocking(fd, False)
    return _finish([fd], tso=tso, uso=uso)


def make_persistent(name: str, *, owner: int, group: int | None = None) -> None:
    """Create a device that outlives us, and let a user, and members of a group, attach to it.

    It has as many queues as are attached to it. BackendError that says what to do.
    """
    _check_name(name)
    fd = _open_node()
    try:
        _set_iff(fd, name, _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_MULTI_QUEUE)
        fcntl.ioctl(fd, _TUNSETOWNER, owner)
        if group is not None:
            fcntl.ioctl(fd, _TUNSETGROUP, group)
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    except OSError as error:
        raise _explain(name, error) from error
    finally:
        os.close(fd)


def _finish(fds: list[int], *, tso: bool, uso: bool) -> Tun:
    """The device behind these queues, which are closed if it cannot be had: it may go at any time."""
    try:
        return _set_up(fds, tso=tso, uso=uso)
    except OSError as error:
        for fd in fds:
            os.close(fd)
        raise BackendError(f"TUN device: {os.strerror(error.errno or 0)} while it was set up") from error


def _set_up(fds: list[int], *, tso: bool, uso: bool) -> Tun:
    real, flags = _get_iff(fds[0])
    tun = Tun(
        name=real,
        fds=fds,
        vnet_hdr=bool(flags & _IFF_VNET_HDR),
        tso=False,
        uso=False,
    )
    if tun.vnet_hdr:
        for fd in fds:
            # An earlier user of a persistent device may have left another size.
            fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", VNET_HDR_LEN))
        set_offloads(tun, tso=tso, uso=uso)
    else:
        tun.refused = {"tun_tso": "no virtio header on this queue", "tun_uso": "no virtio header on this queue"}
    return tun


def set_offloads(tun: Tun, *, tso: bool, uso: bool) -> None:
    """Ask for superframes and record what the kernel granted; a refusal is a verdict, not an error."""
    grants = probe_offloads(lambda bits: _set_offload(tun.fds[0], bits), tso=tso, uso=uso)
    tun.tso, tun.uso, tun.refused = grants


def probe_offloads(attempt: Callable[[int], int], *, tso: bool, uso: bool) -> tuple[bool, bool, dict[str, str]]:
    """Climb down the TUNSETOFFLOAD ladder: (tso, uso, refused). ``attempt`` returns 0 or an errno.

    set_offload() in drivers/net/tun.c takes a mask whole or not at all, needs CSUM for everything else, and
    USO4 and USO6 only together; an unknown bit is EINVAL, which is how an older kernel says so.
    """
    refused: dict[str, str] = {}
    if not tso:
        refused["tun_tso"] = "switched off"
    if not uso:
        refused["tun_uso"] = "switched off"
    tso_bits = _TUN_F_TSO4 | _TUN_F_TSO6
    uso_bits = _TUN_F_USO4 | _TUN_F_USO6
    for with_tso, with_uso in ((tso, uso), (tso, False), (False, False)):
        bits = _TUN_F_CSUM | (tso_bits if with_tso else 0) | (uso_bits if with_uso else 0)
        error = attempt(bits)
        if not error:
            return with_tso, with_uso, refused
        for key, had in (("tun_uso", with_uso), ("tun_tso", with_tso)):
            if had:
                refused.setdefault(key, f"the kernel refuses it: {os.strerror(error)}")
                break
    attempt(0)
    refused["checksum"] = "the kernel refuses checksum offload"
    return False, False, refused


def _set_offload(fd: int, bits: int) -> int:
    try:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, bits)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def device_exists(name: str) -> bool:
    """Whether a network device of this name is there."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _check_name(name: str) -> None:
    fits = 0 < len(name.encode()) < _IFNAMSIZ
    if not fits or name in (".", "..") or any(c.isspace() or c in "/:" for c in name):
        raise BackendError(f"{name!r} is not a device name", remedy="use 1 to 15 characters without space, '/' or ':'")


def is_tun_queue(fd: int) -> bool:
    """Whether a descriptor is a queue that is attached to a TUN or TAP device."""
    try:
        _get_iff(fd)
    except OSError:
        return False
    return True


def check_node() -> None:
    """BackendError if TUN devices cannot be opened at all."""
    os.close(_open_node())


def _open_node() -> int:
    try:
        fd = os.open(DEVICE_NODE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        remedy = grants.DEVICE
        if error.errno in (errno.EACCES, errno.EPERM):
            # EPERM: the container's device rules do not have it, whatever is in its /dev
            permission = f"let this user open it: chmod 0666 {DEVICE_NODE}"
            remedy = grants.DEVICE if error.errno == errno.EPERM else permission
        raise BackendError(f"{DEVICE_NODE}: {error.strerror}", remedy=remedy) from error
    if not stat.S_ISCHR(os.fstat(fd).st_mode):
        # made by hand, or by a mount of what the host does not have
        os.close(fd)
        raise BackendError(f"{DEVICE_NODE} is a file and no device", remedy=f"remove it; {grants.DEVICE}")
    return fd


def _set_iff(fd: int, name: str, flags: int) -> str:
    request = bytearray(_IFREQ.pack(name.encode(), flags))
    fcntl.ioctl(fd, _TUNSETIFF, request)
    return request[:_IFNAMSIZ].split(b"\0", 1)[0].decode()


def _get_iff(fd: int) -> tuple[str, int]:
    request = bytearray(_IFREQ.size)
    fcntl.ioctl(fd, _TUNGETIFF, request)
    name, flags = _IFREQ.unpack(request)
    return name.split(b"\0", 1)[0].decode(), flags


def _explain(name: str, error: OSError) -> BackendError:
    known = {
        errno.EPERM: ("not permitted", GRANT_ADMIN),
        errno.EBUSY: ("another process has it open", "stop that process, or choose another device name"),
        errno.EEXIST: ("a device of another kind has this name", "choose another device name"),
        errno.EINVAL: ("it is not a TUN device", "choose another device name"),
        errno.E2BIG: ("too many queues", "set fewer workers"),
        errno.ENOSPC: ("too many queues", "set fewer workers"),
    }
    if error.errno == errno.EPERM and device_exists(name):
        mend = f"ipsecd --prepare --owner {os.geteuid()}, or grant CAP_NET_ADMIN"
        known[errno.EPERM] = f"it was made for another user than {os.geteuid()}", mend
    text, remedy = known.get(error.errno or 0, (error.strerror or "unknown error", "see the kernel log"))
    return BackendError(f"TUN device {name}: {text}", remedy=remedy)
