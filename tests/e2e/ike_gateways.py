"""Two gateways whose daemons negotiate with each other, what to write into their configurations, and who listens."""

from __future__ import annotations

import errno
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from ipsec.net import netns
from tests.e2e.gateways import COMMAND, INNER, NETS, OUTER, WIRE, Gateway, Setup, World, eventually

#: a section: values and sections by name
Tree = dict[str, Any]

NAMES = ("a.example.org", "b.example.org")
SECRET = "correct horse battery staple"
_ETH_P_ALL = 3
#: EtherTypes of IPv4 and IPv6
_IP = (0x0800, 0x86DD)


def site(side: int, *, outer: int = 4) -> Tree:
    """A tunnel between both networks with a pre-shared key; nobody begins."""
    child = {
        "local_ts": f"{NETS[4][side]}, {NETS[6][side]}",
        "remote_ts": f"{NETS[4][1 - side]}, {NETS[6][1 - side]}",
        "esp_proposals": "aes128gcm16-x25519",
    }
    return {
        "version": "2",
        "local_addrs": OUTER[outer][side],
        "remote_addrs": OUTER[outer][1 - side],
        "proposals": "aes128gcm16-prfsha256-x25519",
        "local": {"auth": "psk", "id": NAMES[side]},
        "remote": {"auth": "psk", "id": NAMES[1 - side]},
        "children": {"net": child},
    }


class IkeWorld(World):
    """Both gateways with what ``conf`` says; change that, then ``start``."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, Setup())
        self.conf: tuple[Tree, Tree] = (self._default(0), self._default(1))

    def _default(self, side: int) -> Tree:
        gateway = (self.a, self.b)[side]
        settings = {
            "state_dir": str(gateway.state),
            "vici_socket": "none",
            "workers": "0",
            "addresses": f"{INNER[4][side]}/32, {INNER[6][side]}/128",
            # nobody here is far away, and nobody wants to wait
            "retransmit_timeout": "0.4",
            "retransmit_base": "1.2",
        }
        secrets = {"ike-1": {"secret": SECRET, "id-1": NAMES[0], "id-2": NAMES[1]}}
        return {"ipsecd": settings, "connections": {"site": site(side)}, "secrets": secrets}

    def set(self, where: str, value: object, *sides: int) -> None:
        """Give a key, ``connections.site.children.net.mode``, a value: at these sides, or at both.

        ``:`` stands for the child, ``@`` for the connection; None removes a key or section.
        """
        where = where.replace(":", "@children.net.").replace("@", "connections.site.")
        for side in sides or (0, 1):
            *path, key = where.split(".")
            tree = self.conf[side]
            for name in path:
                tree = tree.setdefault(name, {})
            if value is None:
                tree.pop(key, None)
            else:
                tree[key] = value

    def write(self) -> None:
        """Write both configurations."""
        for gateway, tree in zip((self.a, self.b), self.conf, strict=True):
            gateway.config.touch(mode=0o600)
            gateway.config.write_text(written(tree))

    def write_config(self, gateway: Gateway, **changes: str) -> None:
        """What ``conf`` says so far; there is nothing to change by the way."""
        assert not changes
        self.write()

    def start(self) -> None:
        """Start both daemons at once."""
        self.write()
        threads = [threading.Thread(target=launch, args=(gateway,)) for gateway in (self.b, self.a)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for gateway in (self.a, self.b):
            assert "ready" in gateway.log(), f"ipsecd did not start:\n{gateway.log()}"

    def up(self) -> None:
        """Start both daemons, the first of which begins, and wait for the tunnel."""
        self.set(":start_action", "start", 0)
        self.start()
        self.wait_up()

    def wait_up(self, count: int = 1) -> None:
        """Wait until both have said so often that a CHILD_SA is up."""
        for gateway in (self.a, self.b):
            # on a busy machine one is ready when the other has given up, and begins again after 10 s
            assert eventually(lambda gateway=gateway: ups(gateway) >= count, 30), self.logs()
        # of many at once, and beside a reload, routes come a moment after the line in the log
        for gateway in (self.a, self.b):
            eventually(lambda gateway=gateway: "proto 205" in gateway.leftovers(), 1)

    def logs(self) -> str:
        """What both have said."""
        return f"--- a\n{self.a.log()}--- b\n{self.b.log()}"


def launch(gateway: Gateway, *options: str, timeout: float = 30) -> None:
    """Start a daemon and wait until it is ready or has ended."""
    with gateway.log_file.open("wb") as log:
        command = ["ip", "netns", "exec", gateway.namespace, *COMMAND, "--config", str(gateway.config), *options]
        gateway.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    process = gateway.process
    eventually(lambda: "ready" in gateway.log() or process.poll() is not None, timeout)


def ups(gateway: Gateway) -> int:
    """How often a CHILD_SA came up."""
    return gateway.log().count("up, SPIs ")


def written(tree: Tree) -> str:
    """Sections and values as in a file."""
    return "".join(_lines(tree))


def _lines(tree: Tree) -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield f"{name} {{\n"
            yield from _lines(value)
            yield "}\n"
        else:
            yield f"{name} = {value}\n"


def make_certificates(directory: Path, kind: str) -> None:
    """A CA, and a certificate ``gw<side>.pem`` with its key for each gateway, where swanctl.conf looks for them."""
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
    _write(directory / "x509ca" / "ca.pem", _certificate(issuer, authority.public_key(), issuer, authority, ""))
    for side, name in enumerate(NAMES):
        key = _make_key(kind)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        _write(directory / "x509" / f"gw{side}.pem", _certificate(subject, key.public_key(), issuer, authority, name))
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _write(directory / "private" / f"gw{side}.pem", secret)


def _make_key(kind: str) -> Any:
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    return ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())


def _certificate(subject: x509.Name, key: Any, issuer: x509.Name, signer: Any, name: str) -> bytes:
    now = datetime.now(UTC)
    serial, day = x509.random_serial_number(), timedelta(days=1)
    builder = x509.CertificateBuilder(issuer, subject, key, serial, now - day, now + day)
    builder = builder.add_extension(x509.BasicConstraints(not name, None), True)
    if name:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.PEM)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(data)


class Sniffer:
    """Everything that goes over a device, in both directions."""

    def __init__(self, gateway: Gateway, device: str = WIRE) -> None:
        with netns.inside(gateway.namespace):
            # of no protocol before it is bound: it would take what passes other devices
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
            self._socket.bind((device, _ETH_P_ALL))
        self._socket.setblocking(False)

    def packets(self) -> list[bytes]:
        """IP packets since the last call."""
        found = []
        while True:
            try:
                data, (_, protocol, *_) = self._socket.recvfrom(65536)
            except BlockingIOError:
                return found
            except OSError as error:
                # told once if the device was down for a while
                if error.errno != errno.ENETDOWN:
                    raise
                continue
            if protocol in _IP:
                found.append(data)

    def close(self) -> None:
        """Listen no longer."""
        self._socket.close()


@contextmanager
def sniffing(gateway: Gateway, device: str = WIRE) -> Iterator[Sniffer]:
    """A sniffer for as long as the body runs."""
    sniffer = Sniffer(gateway, device)
    try:
        yield sniffer
    finally:
        sniffer.close()


def ports_of(packets: list[bytes]) -> set[int]:
    """The UDP ports that IPv4 packets use."""
    found: set[int] = set()
    for packet in packets:
        if packet[0] >> 4 == 4 and packet[9] == socket.IPPROTO_UDP:
            found |= {int.from_bytes(packet[20:22], "big"), int.from_bytes(packet[22:24], "big")}
    return found


def in_clear(packets: list[bytes]) -> list[str]:
    """Packets that go from or to the protected networks, by their own header: their two ends."""
    found = []
    for packet in packets:
        ends = (packet[12:16], packet[16:20]) if packet[0] >> 4 == 4 else (packet[8:24], packet[24:40])
        if any(end[:1] in (b"\x0a", b"\xfd") for end in ends):
            found.append(" -> ".join(str(ip_address(end)) for end in ends) + f" {packet[:60].hex()}")
    return found


def loss(output: str) -> int:
    """How many packets a ping did not get back."""
    found = re.search(r"(\d+) packets transmitted, (\d+) received", output)
    assert found, output
    return int(found[1]) - int(found[2])
