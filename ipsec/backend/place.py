"""Where the device, its addresses and its routes are: in this network namespace, or in another one.

What concerns them happens on one helper thread, which is in that namespace; sockets of the outside are opened by others
and stay in ours. So an application in the other namespace has no way out but the tunnel.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ipsec.backend.base import IpInterface
from ipsec.backend.routes import gso_max_size
from ipsec.backend.settings import UserspaceSettings
from ipsec.errors import BackendError
from ipsec.net import grants, netns
from ipsec.net.route import Router
from ipsec.net.tun import device_exists

log = logging.getLogger(__name__)


def open_helper(settings: UserspaceSettings) -> ThreadPoolExecutor:
    """The helper thread. BackendError if it cannot be where it is to be."""
    if not settings.namespace:
        return ThreadPoolExecutor(1, "ipsec-netlink")
    sweep_home(settings)
    helper = ThreadPoolExecutor(1, "ipsec-netlink")
    try:
        helper.submit(netns.enter, settings.namespace).result()
    except OSError as error:
        helper.shutdown()
        raise explain(settings.namespace, error) from error
    log.info("the device is in the network namespace %s", settings.namespace)
    return helper


def make_router(settings: UserspaceSettings) -> Router:
    """The router, with the table for us alone, on the helper thread. BackendError."""
    table = settings.routing_table
    router = Router(table=table, priority=settings.routing_priority, fwmark=settings.fwmark)
    try:
        stale = router.claim(keep_closed=settings.fail_closed)
        for remedy in router.rules_in_the_way():
            why = "our own packets too, where a tunnel is for all addresses"
            log.warning("a rule of somebody else leads all packets into table %d, %s: %s", table, why, remedy)
    except BaseException:
        router.close(keep_closed=settings.fail_closed)
        raise
    if stale:
        log.info("removed or took over %d routes and rules that a predecessor left in table %d", stale, table)
    return router


def configure(
    router: Router,
    device: str,
    settings: UserspaceSettings,
    addresses: Sequence[IpInterface],
    mtu: int,
    path_mtu: int,
) -> None:
    """Bring the device up with these addresses, on the helper thread; log what the kernel has not. BackendError."""
    notes = router.configure(
        device,
        mtu=mtu,
        addresses=addresses,
        queue_length=settings.queue_length,
        gso_max_size=gso_max_size(device, mtu, path_mtu),
    )
    for note in notes:
        log.info("%s: %s", device, note)


def sweep_home(settings: UserspaceSettings) -> None:
    """Remove what a killed predecessor left in our own namespace, when it had its device here."""
    if not settings.install_routes:
        return
    try:
        with Router(table=settings.routing_table) as router:
            stale = router.leftovers() and router.claim()
    except BackendError as error:
        # another daemon may have its device here, or we may do nothing here
        log.debug("our own namespace is left as it is: %s", error)
        return
    if stale:
        log.info("removed %d routes and rules that a predecessor left in our own network namespace", stale)


def check_ours(settings: UserspaceSettings, *, routed: bool) -> None:
    """BackendError if a device that is gone cannot be made again by us.

    One that somebody else prepared can be attached to again, but a new one would lack what they gave it.
    """
    if settings.memory is not None:
        raise BackendError("its other end is closed")
    if not routed and settings.tun_fd is None and not device_exists(settings.device):
        raise BackendError(
            f"device {settings.device} was prepared by somebody else and is gone",
            remedy="make it again with its addresses and routes (ipsecd --prepare), then start ipsecd",
        )


def explain(namespace: str, error: OSError) -> BackendError:
    """Why a namespace cannot be entered, and how to mend it."""
    remedies = {
        errno.ENOENT: f"make it (ip netns add {namespace}), or correct ipsecd.namespace",
        errno.EPERM: grants.capability("SYS_ADMIN"),
        errno.EACCES: "grant CAP_SYS_ADMIN, and CAP_SYS_PTRACE for another user's /proc/PID/ns/net",
        errno.EINVAL: "name a network namespace: a name of ip-netns(8), or a path such as /proc/PID/ns/net",
    }
    why = os.strerror(error.errno or 0)
    return BackendError(f"network namespace {namespace}: {why}", remedy=remedies.get(error.errno or 0))
