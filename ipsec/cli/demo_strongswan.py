"""``make demo-strongswan``: an ipsecd and Debian's strongSwan, ECDSA certificates, the same traffic as in the demo.

strongSwan is charon with kernel-libipsec, which does ESP in user space too. ipsecd begins.
"""

from __future__ import annotations

import contextlib
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ipsec.cli.demo_lab import (
    INNER,
    INNER6,
    NAMES,
    Daemon,
    connection,
    inside,
    no_arguments,
    run,
    run_demo,
    show_negotiated,
    start_ipsecd,
)
from ipsec.cli.demo_memory import row
from ipsec.cli.demo_traffic import Wire, file, first_packet, ping, rekeying, throughput

IDENTITIES = ("ipsecd.example", "strongswan.example")
CHARON = "/usr/lib/ipsec/charon"
#: files, and the Debian packages that they come from
NEEDED = {
    CHARON: "strongswan-charon",
    "/usr/sbin/swanctl": "strongswan-swanctl",
    "/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so": "libcharon-extra-plugins",
    "/usr/lib/ipsec/plugins/libstrongswan-openssl.so": "libstrongswan-standard-plugins",
}
# kernel-libipsec before kernel-netlink, as its documentation asks; without forecast, which sees every packet
PLUGINS = (
    "random nonce aesni aes sha1 sha2 hmac kdf gcm curve25519 openssl x509 pubkey pem pkcs1 pkcs8 revocation "
    "constraints kernel-libipsec kernel-netlink socket-default vici"
)


def main() -> int:
    """Run the demo; 0 if every step did what it should."""
    missing = sorted({package for path, package in NEEDED.items() if not Path(path).exists()})
    if missing:
        packages = " ".join(missing)
        print(f"demo: strongSwan is missing: apt-get install --no-install-recommends {packages}", file=sys.stderr)
        return 1
    done = run_demo("ipsec.cli.demo_strongswan", _with_strongswan)
    if isinstance(done, int):
        return done
    print("demo: this needs network namespaces and TUN devices, which cannot be made here:", file=sys.stderr)
    for reason in done:
        print(f"  {reason}", file=sys.stderr)
    return 1


def _with_strongswan(stack: contextlib.ExitStack, scratch: Path) -> None:
    wire = Wire(stack)
    print("ipsecd and strongSwan, IKEv2 with ECDSA certificates made just now, a veth with MTU 1500.\n", flush=True)
    homes = scratch / "ipsecd-0", scratch / "strongswan"
    _certificates(homes)
    _strongswan(stack, homes[1])
    ours = start_ipsecd(stack, scratch, 0, connection(0, auth="pubkey", names=IDENTITIES, initiates=True))
    seconds = first_packet(ours)
    show_negotiated(ours)
    row("from start to the first packet", f"{seconds:.2f} s, most of it Python that loads and kernel features probed")
    for rows in (ping(), throughput(), file(scratch), rekeying(ours)):
        for label, text in rows:
            row(label, text)
    wire.report()
    children, ikes = ours.rekeyed()
    print(f"\nOnly ESP and IKE crossed the wire. In all, {children} CHILD_SAs and {ikes} IKE_SAs were replaced.")


def _strongswan(stack: contextlib.ExitStack, home: Path) -> None:
    """charon in the other namespace, with a configuration that waits for us."""
    socket = f"unix://{home}/charon.vici"
    conf = home / "strongswan.conf"
    conf.write_text(f"""\
charon {{
  load_modular = no
  load = {PLUGINS}
  plugins {{
    vici {{
      socket = {socket}
    }}
  }}
  filelog {{
    stderr {{
      default = 1
      flush_line = yes
    }}
  }}
}}
""")
    (home / "swanctl.conf").write_text(connection(1, auth="pubkey", names=IDENTITIES, initiates=False))
    for address in (f"{INNER[1]}/32", f"{INNER6[1]}/128"):
        inside(NAMES[1], "ip", "addr", "add", address, "dev", "lo")
    # its /run is its own: there may be another charon on this machine
    command = ("unshare", "--mount", "sh", "-c", f"mount -t tmpfs none /run && exec {CHARON}")
    charon = Daemon(stack, 1, home / "log", *command, STRONGSWAN_CONF=str(conf))
    charon.wait("spawning")
    environment = f"STRONGSWAN_CONF={conf}", f"SWANCTL_DIR={home}"
    version = run("env", *environment, "swanctl", "--version", "--uri", socket).split("\n")[0]
    run("env", *environment, "swanctl", "--load-all", "--noprompt", "--file", f"{home}/swanctl.conf", "--uri", socket)
    row("the other end", f"{version}, charon with kernel-libipsec")


def _certificates(homes: tuple[Path, Path]) -> None:
    """A CA, and in each home what swanctl.conf expects there."""
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = _name("Demo CA")
    root = _builder(issuer, issuer, authority.public_key())
    root = root.add_extension(x509.BasicConstraints(True, None), critical=True)
    trusted = root.sign(authority, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    for home, identity in zip(homes, IDENTITIES, strict=True):
        for name in ("x509", "x509ca", "private"):
            (home / name).mkdir(parents=True)
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(identity)])
        certificate = _builder(_name(identity), issuer, key.public_key()).add_extension(names, critical=False)
        (home / "x509ca" / "ca.pem").write_bytes(trusted)
        signed = certificate.sign(authority, hashes.SHA256())
        (home / "x509" / "gateway.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with open(os.open(home / "private" / "gateway.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(secret)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    begin, end = now - timedelta(hours=1), now + timedelta(hours=1)
    return x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), begin, end)


if __name__ == "__main__":
    no_arguments("ipsec.cli.demo_strongswan", __doc__)
    sys.exit(main())
