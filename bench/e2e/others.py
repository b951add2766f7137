"""What a user might pick instead: WireGuard and OpenVPN in user space, and WireGuard and XFRM in the kernel."""

from __future__ import annotations

import datetime
import re
import shutil
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bench.e2e.peers import GCM, START_TIMEOUT_S, NotInstalled, Peer
from bench.topology import DEVICE, Lab, LabError, Link, Namespace, Pair, run, wait_for

WIREGUARD_CIPHER = "chacha20poly1305"
WIREGUARD_DEVICE = "wg0"
WIREGUARD_PORT = 51820
#: what is left of 1500 octets, as wg-quick sets it
WIREGUARD_MTU = 1420


class WireGuardGo(Peer):
    """wireguard-go at both ends. Debian's is of 2022, before it learned to use offloads."""

    def __init__(self, name: str = "wireguard-go", link: Link | None = None) -> None:
        super().__init__(name, "wireguard-go", WIREGUARD_CIPHER, link)

    def _start(self, lab: Lab, pair: Pair, directory: Path) -> None:
        absent = [package for program, package in (("wireguard-go", "wireguard-go"), ("wg", "wireguard-tools"))
                  if shutil.which(program) is None]  # fmt: skip
        if absent:
            raise NotInstalled(self.title, *absent)
        for index, end in enumerate(pair.ends):
            log = directory / f"{'ab'[index]}.log"
            # its control socket is in /var/run: each end needs one of its own
            command = ["sh", "-c", f"mount -t tmpfs none /run && exec wireguard-go -f {WIREGUARD_DEVICE}"]
            process = lab.start(command, log, where=end)
            self.gateways.append(process)
            self.commands.append(f"wireguard-go -f {WIREGUARD_DEVICE}, MTU {WIREGUARD_MTU}")
            enter = ["nsenter", "-t", str(process.pid), "-m", "-n"]
            control = f"test -S /run/wireguard/{WIREGUARD_DEVICE}.sock"
            wait_for(lambda enter=enter, control=control: _succeeds([*enter, "sh", "-c", control]),  # type: ignore[misc]
                     f"{self.title} {end.name}", process, log, timeout_s=START_TIMEOUT_S)  # fmt: skip
        configure_wireguard(
            pair, directory, [["nsenter", "-t", str(process.pid), "-m", "-n"] for process in self.gateways]
        )
        self.route(pair, WIREGUARD_DEVICE)
        self.facts = {"version": run(["wireguard-go", "--version"]).splitlines()[0], "mtu": str(WIREGUARD_MTU)}


class KernelWireGuard(Peer):
    """WireGuard in the kernel, where it is."""

    def __init__(self, name: str = "wireguard", link: Link | None = None) -> None:
        super().__init__(name, "WireGuard in the kernel", WIREGUARD_CIPHER, link)

    def _start(self, lab: Lab, pair: Pair, directory: Path) -> None:
        if shutil.which("wg") is None:
            raise NotInstalled(self.title, "wireguard-tools")
        for end in pair.ends:
            try:
                end.run("ip", "link", "add", WIREGUARD_DEVICE, "type", "wireguard")
            except LabError:
                raise NotInstalled(self.title, why="this kernel has none (modprobe wireguard)") from None
        configure_wireguard(pair, directory, [end.command([]) for end in pair.ends])
        self.route(pair, WIREGUARD_DEVICE)
        self.facts = {"mtu": str(WIREGUARD_MTU)}


def configure_wireguard(pair: Pair, directory: Path, inside: list[list[str]]) -> None:
    """Keys, peers and MTU of the device at both ends; ``inside`` is what a command for an end begins with."""
    private = [run(["wg", "genkey"]).strip() for _ in pair.ends]
    public = []
    for index, key in enumerate(private):
        file = directory / f"{'ab'[index]}.key"
        file.touch(mode=0o600)
        file.write_text(key)
        public.append(run(["sh", "-c", f"wg pubkey < {file}"]).strip())
    for index, enter in enumerate(inside):
        other = 1 - index
        run([*enter, "wg", "set", WIREGUARD_DEVICE, "listen-port", str(WIREGUARD_PORT),
             "private-key", str(directory / f"{'ab'[index]}.key"), "peer", public[other],
             "endpoint", f"{pair.link.outer[other]}:{WIREGUARD_PORT}",
             "allowed-ips", pair.link.inner_net[other]])  # fmt: skip
        pair.ends[index].run("ip", "link", "set", WIREGUARD_DEVICE, "mtu", str(WIREGUARD_MTU), "up")


class OpenVpn(Peer):
    """OpenVPN in user space, point to point over UDP, AES-128-GCM; data channel offload is switched off."""

    program = "/usr/sbin/openvpn"
    device = "tun0"
    mtu = 1420

    def __init__(self, name: str = "openvpn", link: Link | None = None) -> None:
        super().__init__(name, "OpenVPN, user space", GCM, link)

    def _start(self, lab: Lab, pair: Pair, directory: Path) -> None:
        if not Path(self.program).exists():
            raise NotInstalled(self.title, "openvpn")
        prints = [self_signed(directory / f"{'ab'[index]}.pem") for index in range(2)]
        for index, end in enumerate(pair.ends):
            log = directory / f"{'ab'[index]}.log"
            options = (
                f"--dev {self.device} --proto udp --local {pair.link.outer[index]} "
                f"--remote {pair.link.outer[1 - index]} "
                f"--ifconfig 172.16.0.{1 + index} 172.16.0.{2 - index} --tun-mtu {self.mtu} --txqueuelen 1000 "
                f"--data-ciphers AES-128-GCM --disable-dco --fast-io --sndbuf 4194304 --rcvbuf 4194304 --auth-nocache "
                f"{'--tls-server --dh none' if index == 0 else '--tls-client'}"
            )
            pem = str(directory / f"{'ab'[index]}.pem")
            command = [self.program, *options.split(), "--cert", pem, "--key", pem, "--peer-fingerprint",
                       prints[1 - index]]  # fmt: skip
            self.gateways.append(lab.start(command, log, where=end))
            self.commands.append(f"openvpn {options}")
        for index, process in enumerate(self.gateways):
            log = directory / f"{'ab'[index]}.log"
            wait_for(lambda log=log: "Initialization Sequence Completed" in log.read_text(errors="replace"),  # type: ignore[misc]
                     self.title, process, log, timeout_s=START_TIMEOUT_S)  # fmt: skip
        self.route(pair, self.device)
        text = (directory / "a.log").read_text(errors="replace")
        version = re.search(r"OpenVPN \S+", text)
        cipher = re.search(r"Data Channel: .*", text)
        self.facts = {"version": version[0] if version else "?", "mtu": str(self.mtu),
                      "cipher": cipher[0] if cipher else "?"}  # fmt: skip


def self_signed(file: Path) -> str:
    """Write a new key with a certificate for it; the certificate's SHA-256 fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, file.stem)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file.touch(mode=0o600)
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


class Xfrm(Peer):
    """ESP in the kernel, where it is: manual SAs, tunnel mode, without UDP."""

    spis = (0x20001, 0x20002)

    def __init__(self, name: str = "xfrm", link: Link | None = None) -> None:
        super().__init__(name, "ESP in the kernel (XFRM)", GCM, link)

    def _start(self, lab: Lab, pair: Pair, directory: Path) -> None:
        # worth nothing, for they are public
        keys = "0x" + "5a" * 20, "0x" + "a5" * 20
        for index, end in enumerate(pair.ends):
            for sender in (0, 1):
                self._state(end, pair.link, sender, keys[sender])
            other = 1 - index
            for direction, source, target in (("out", index, other), ("in", other, index), ("fwd", other, index)):
                net = pair.link.inner_net
                end.run("ip", "xfrm", "policy", "add", "src", net[source], "dst", net[target], "dir", direction, "tmpl",
                        "src", pair.link.outer[source], "dst", pair.link.outer[target], "proto", "esp",
                        "reqid", "1", "mode", "tunnel")  # fmt: skip
        self.route(pair, DEVICE)
        self.facts = {"mtu": str(pair.link.mtu)}

    def _state(self, end: Namespace, link: Link, sender: int, key: str) -> None:
        try:
            end.run("ip", "xfrm", "state", "add", "src", link.outer[sender], "dst", link.outer[1 - sender],
                    "proto", "esp", "spi", f"{self.spis[sender]:#x}", "reqid", "1", "mode", "tunnel",
                    "replay-window", "128", "aead", "rfc4106(gcm(aes))", key, "128")  # fmt: skip
        except LabError as error:
            said = str(error).splitlines()[-1].strip()
            raise NotInstalled(self.title, why=f"this kernel does not do it ({said}); modprobe esp4") from None


def _succeeds(command: list[str]) -> bool:
    try:
        run(command)
    except LabError:
        return False
    return True
