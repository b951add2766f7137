"""Name constraints (RFC 5280 section 4.2.1.10). Every comparison ignores case, so that none is passed by writing in
capitals (CVE-2026-35331)."""

from __future__ import annotations

from ipsec.crypto import x509
from ipsec.crypto.auth import AuthenticationError
from ipsec.crypto.names import emails, name_key
from ipsec.crypto.x509 import Certificate, NameConstraints
from ipsec.errors import ParseError

_KINDS = {x509.EMAIL: "e-mail", x509.DNS: "host", x509.DIRECTORY: "distinguished", x509.URI: "URI", x509.IP: "IP"}
COMPARISONS_MAX = 65536
"names times subtrees of one certificate"


def check_names(certificate: Certificate, constraints: NameConstraints) -> None:
    """Hold the subject and alternative names against the constraints of one authority above.

    AuthenticationError if one is not permitted or is excluded; ParseError if one cannot be read.
    """
    names = list(certificate.alt_names)
    if certificate.subject_key:
        names.append((x509.DIRECTORY, certificate.subject.data))
        if all(tag != x509.EMAIL for tag, _ in certificate.alt_names):
            names += [(x509.EMAIL, text.encode("utf-8")) for text in emails(certificate.subject.data)]
    if len(names) * (len(constraints.permitted) + len(constraints.excluded)) > COMPARISONS_MAX:
        raise AuthenticationError(f"{certificate.subject} has too many names")
    for tag, value in names:
        permitted = [base for kind, base in constraints.permitted if kind == tag]
        excluded = [base for kind, base in constraints.excluded if kind == tag]
        if (permitted or excluded) and tag not in _KINDS:
            raise AuthenticationError(f"{certificate.subject} has a name of a kind that cannot be constrained here")
        if permitted and not any(_within(tag, value, base) for base in permitted):
            raise AuthenticationError(f"a {_KINDS[tag]} name of {certificate.subject} is not permitted by its issuers")
        if any(_within(tag, value, base) for base in excluded):
            raise AuthenticationError(f"a {_KINDS[tag]} name of {certificate.subject} is excluded by its issuers")


def _within(tag: int, value: bytes, base: bytes) -> bool:
    """Whether a name is in a subtree of its own kind."""
    if tag == x509.DIRECTORY:
        prefix = name_key(base)
        return name_key(value)[: len(prefix)] == prefix
    if tag == x509.IP:
        return _address_within(value, base)
    value, base = value.lower().rstrip(b"."), base.lower().rstrip(b".")
    if tag == x509.DNS:
        # A base with a leading dot is not in the RFC; in use it means hosts below
        return not base or value == base or value.endswith(base if base.startswith(b".") else b"." + base)
    if tag == x509.EMAIL:
        _, _, host = value.rpartition(b"@")
        return value == base if b"@" in base else _host_within(host, base)
    return _host_within(_uri_host(value), base)


def _host_within(host: bytes, base: bytes) -> bool:
    """E-mail and URI: a host, or with a leading dot all hosts below."""
    return not base or (host.endswith(base) if base.startswith(b".") else host == base)


def _address_within(value: bytes, base: bytes) -> bool:
    if len(base) not in (8, 32) or len(value) not in (4, 16):
        raise ParseError("malformed IP address in a certificate")
    if len(base) != 2 * len(value):
        return False
    network, mask = base[: len(value)], base[len(value) :]
    return all(octet & bits == start & bits for octet, bits, start in zip(value, mask, network, strict=True))


def _uri_host(uri: bytes) -> bytes:
    """Host of a URI; one without, or with an address, cannot be held against a constraint."""
    _, found, rest = uri.partition(b"://")
    authority = rest.split(b"/")[0].split(b"?")[0].split(b"#")[0]
    host = authority.rpartition(b"@")[2]
    if not found or not host or host.startswith(b"["):
        raise ParseError("a URI without host name under name constraints")
    host = host.partition(b":")[0].rstrip(b".")
    if not host or host.replace(b".", b"").isdigit():
        raise ParseError("a URI without host name under name constraints")
    return host
