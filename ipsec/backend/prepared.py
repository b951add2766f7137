"""A device that was prepared: what it must be like, since nothing can be changed about it."""

from __future__ import annotations

import logging
import os
import socket

from ipsec.backend.base import IpInterface
from ipsec.backend.settings import UserspaceSettings
from ipsec.errors import BackendError
from ipsec.net import grants, link
from ipsec.net.route import claim_table

log = logging.getLogger(__name__)


def take_prepared(settings: UserspaceSettings) -> socket.socket | None:
    """What keeps other daemons off the table that was prepared, until it is closed; None if nothing does. BackendError.

    Also if the device is not there, not up, or lacks an address.
    """
    claim = claim_table(settings.routing_table)
    try:
        _check(settings)
    except BackendError:
        if claim is not None:
            claim.close()
        raise
    log.info("device %s, its addresses and routes were prepared: nothing needs a capability", settings.device)
    return claim


def _check(settings: UserspaceSettings) -> None:
    device = settings.device
    if settings.tun_fd is None:
        try:
            up, mtu = link.is_up(device), link.mtu_of(device)
        except OSError as error:
            raise BackendError(
                f"device {device} was to be prepared: {os.strerror(error.errno or 0)}", remedy=grants.PREPARE
            ) from error
        if not up:
            raise BackendError(f"device {device} was prepared and is down", remedy=f"ip link set {device} up")
        if settings.mtu and mtu != settings.mtu:
            log.warning("device %s has MTU %d, not %d", device, mtu, settings.mtu)
    for address in settings.addresses:
        check_address(settings, address)


def check_address(settings: UserspaceSettings, address: IpInterface) -> None:
    """BackendError if a device was prepared without this address."""
    if settings.prepared and not link.has_address(address.ip):
        raise BackendError(
            f"device {settings.device} was prepared without the address {address.ip}",
            remedy="prepare it with that address (vips, or ipsecd.addresses), or let ipsecd do it (CAP_NET_ADMIN)",
        )
