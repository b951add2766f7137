"""Wireshark's key files: whoever has them, and has recorded the traffic, reads it. Written only when asked for.

``ikev2_decryption_table`` and ``esp_sa`` are tables as Wireshark keeps them in its profile directory.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path as FilePath

from ipsec.crypto.prf import PrfAlgorithm
from ipsec.crypto.sk import SkSuite
from ipsec.crypto.suites import EspSuite
from ipsec.errors import BackendError
from ipsec.esp.sa import IpAddress
from ipsec.ike.config import Connection
from ipsec.ike.engine import IkeEngine
from ipsec.ike.events import Event, InstallChild, Path
from ipsec.ike.keymat import IkeKeys
from ipsec.ike.sa import IkeSa
from ipsec.text import plural
from ipsec.wire.iana import Encr, Integ

log = logging.getLogger(__name__)

_IKE_FILE = "ikev2_decryption_table"
_ESP_FILE = "esp_sa"
KEY_FILES = (_IKE_FILE, _ESP_FILE)

_IKE_ENCR = {
    Encr.TRIPLE_DES_CBC: "3DES [RFC2451]",
    Encr.AES_CBC: "AES-CBC-{bits} [RFC3602]",
    Encr.AES_CTR: "AES-CTR-{bits} [RFC5930]",
    Encr.AES_GCM_8: "AES-GCM-{bits} with 8 octet ICV [RFC5282]",
    Encr.AES_GCM_12: "AES-GCM-{bits} with 12 octet ICV [RFC5282]",
    Encr.AES_GCM_16: "AES-GCM-{bits} with 16 octet ICV [RFC5282]",
    Encr.AES_CCM_8: "AES-CCM-{bits} with 8 octet ICV [RFC5282]",
    Encr.AES_CCM_12: "AES-CCM-{bits} with 12 octet ICV [RFC5282]",
    Encr.AES_CCM_16: "AES-CCM-{bits} with 16 octet ICV [RFC5282]",
}
_IKE_INTEG = {
    Integ.NONE: "NONE [RFC4306]",
    Integ.HMAC_SHA1_96: "HMAC_SHA1_96 [RFC2404]",
    Integ.HMAC_SHA2_256_128: "HMAC_SHA2_256_128 [RFC4868]",
    Integ.HMAC_SHA2_384_192: "HMAC_SHA2_384_192 [RFC4868]",
    Integ.HMAC_SHA2_512_256: "HMAC_SHA2_512_256 [RFC4868]",
    Integ.AES_XCBC_96: "ANY 96-bits of Authentication [No Checking]",
    Integ.AES_CMAC_96: "ANY 96-bits of Authentication [No Checking]",
}
_ESP_ENCR = {
    Encr.NULL: "NULL",
    Encr.TRIPLE_DES_CBC: "TripleDES-CBC [RFC2451]",
    Encr.AES_CBC: "AES-CBC [RFC3602]",
    Encr.AES_CTR: "AES-CTR [RFC3686]",
    Encr.AES_GCM_8: "AES-GCM with 8 octet ICV [RFC4106]",
    Encr.AES_GCM_12: "AES-GCM with 12 octet ICV [RFC4106]",
    Encr.AES_GCM_16: "AES-GCM with 16 octet ICV [RFC4106]",
}
_ESP_INTEG = {
    Integ.NONE: "NULL",
    Integ.HMAC_SHA1_96: "HMAC-SHA-1-96 [RFC2404]",
    Integ.HMAC_SHA2_256_128: "HMAC-SHA-256-128 [RFC4868]",
    Integ.HMAC_SHA2_256_96: "HMAC-SHA-256-96 [draft-ietf-ipsec-ciph-sha-256-00]",
    Integ.HMAC_SHA2_384_192: "HMAC-SHA-384-192 [RFC4868]",
    Integ.HMAC_SHA2_512_256: "HMAC-SHA-512-256 [RFC4868]",
    Integ.AES_XCBC_96: "ANY 96 bit authentication [no checking]",
    Integ.AES_CMAC_96: "ANY 96 bit authentication [no checking]",
}


def open_key_file(path: FilePath, *, make: bool = True) -> int:
    """A file of ours that nobody else reads, made if it is not there. OSError, also if it is another's."""
    # no symlink leads elsewhere, and a FIFO keeps us from nothing
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(path, flags | (os.O_CREAT if make else 0), 0o600)
    try:
        # it may have been there, and for root fchmod would not fail
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
            raise PermissionError(errno.EPERM, f"{path.name} is somebody else's, has a second name, or is no file")
        if make:
            os.fchmod(fd, 0o600)
    except OSError:
        os.close(fd)
        raise
    return fd


class KeyLog:
    """Appends to both files. A disk that is full costs lines, not tunnels."""

    def __init__(self, directory: str) -> None:
        """BackendError if the files cannot be made, or belong to somebody else."""
        folder = FilePath(directory)
        self._files: dict[str, int] = {}
        self._directory = directory
        self._lost = dict.fromkeys(KEY_FILES, 0)
        "lines that could not be written, since one was, by file"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for name in KEY_FILES:
                self._files[name] = open_key_file(folder / name)
        except OSError as error:
            self.close()
            why = f"key files in {directory} cannot be written: {error.strerror}"
            raise BackendError(why, remedy="name another directory in ipsecd.keylog, or leave it out") from error
        log.warning("ALL KEYS ARE WRITTEN TO %s: whoever reads them reads all traffic (ipsecd.keylog)", directory)

    def close(self) -> None:
        """Write no more."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()

    def ike(self, sa: IkeSa, suite: SkSuite, keys: IkeKeys) -> None:
        """The keys of an IKE_SA."""
        encr, integ = _IKE_ENCR.get(Encr(suite.encr)), _IKE_INTEG.get(Integ(suite.integ))
        if encr is None or integ is None:
            return
        fields = [sa.spi_i.hex(), sa.spi_r.hex(), keys.sk_ei.hex(), keys.sk_er.hex()]
        fields += [f'"{encr.format(bits=suite.key_bits)}"', keys.sk_ai.hex(), keys.sk_ar.hex(), f'"{integ}"']
        self._write(_IKE_FILE, ",".join(fields))

    def on_event(self, event: Event) -> None:
        """The keys of a CHILD_SA, direction by direction."""
        if not isinstance(event, InstallChild):
            return
        child, local, remote = event.child, event.path.local, event.path.remote
        if event.inbound is not None:
            self._esp(event.suite, remote, local, child.spi_in, event.inbound.encr, event.inbound.integ)
        if event.outbound is not None:
            self._esp(event.suite, local, remote, child.spi_out, event.outbound.encr, event.outbound.integ)

    def _esp(self, suite: EspSuite, source: IpAddress, target: IpAddress, spi: int, encr: bytes, integ: bytes) -> None:
        names = _ESP_ENCR.get(suite.encr), _ESP_INTEG.get(suite.integ)
        if None in names:
            return
        fields = [f"IPv{source.version}", str(source), str(target), f"0x{spi:08x}"]
        for name, key in zip(names, (encr, integ), strict=True):
            fields += [str(name), f"0x{key.hex()}" if key else ""]
        self._write(_ESP_FILE, ",".join(f'"{field}"' for field in fields))

    def _write(self, name: str, line: str) -> None:
        fd = self._files.get(name)
        if fd is None:
            return
        try:
            _append(fd, line.encode() + b"\n")
        except OSError as error:
            if not self._lost[name]:
                log.error("keys are lost: %s/%s: %s", self._directory, name, error.strerror)
            self._lost[name] += 1
        else:
            if self._lost[name]:
                lost = plural(self._lost[name], "line")
                log.warning("keys are written to %s/%s again, %s lost", self._directory, name, lost)
            self._lost[name] = 0


def _append(fd: int, line: bytes) -> None:
    """Write all of a line or, on a full disk, nothing: the next one would go on in the middle of it."""
    size = os.fstat(fd).st_size
    if os.write(fd, line) < len(line):
        os.ftruncate(fd, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class RecordedSa(IkeSa):
    """Tells its keys."""

    __slots__ = ()

    def install_keys(self, prf: PrfAlgorithm, suite: SkSuite, keys: IkeKeys) -> None:
        """See IkeSa."""
        super().install_keys(prf, suite, keys)
        if isinstance(self.core, RecordedEngine) and self.core.keylog is not None:
            self.core.keylog.ike(self, suite, keys)


class RecordedEngine(IkeEngine):
    """An engine whose IKE_SAs tell their keys."""

    keylog: KeyLog | None = None

    def new_sa(self, connection: Connection, *, initiator: bool, path: Path) -> IkeSa:
        """See Registry."""
        sa = super().new_sa(connection, initiator=initiator, path=path)
        # the same slots, other behaviour; the keys are not there yet
        sa.__class__ = RecordedSa
        return sa
