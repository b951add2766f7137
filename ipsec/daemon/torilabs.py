"""The metrics of torilabs/ipsec-prometheus-exporter, with its names, labels and values, for dashboards made for it.

That program asks a charon over vici and shows what it hears; here the same messages are shown without the way there.
They are gauges by SA: those of an SA end with it. Ours, by name, are in ``ipsec.daemon.families``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID
from prometheus_client.samples import Sample

from ipsec.crypto.x509 import Certificate
from ipsec.daemon.families import Series
from ipsec.daemon.ike import IkeControl
from ipsec.daemon.metrics import Pace, certificates
from ipsec.daemon.vici import traffic
from ipsec.ike.config import Connection
from ipsec.vici import show

Message = Mapping[str, Any]
Figure = Callable[[Message], float]
Rows = Iterable[tuple[tuple[object, ...], float]]
Described = list[tuple[str, Message]]
"IKE_SAs: the connection, and the fields that vici has"

PREFIX = "strongswan_"

_IKE = ("ike_name", "ike_id")
_IKE_ALGORITHMS = (*_IKE, "algorithm", "dh_group")
_SA = (*_IKE, "child_name", "child_id")
_SA_SELECTORS = (*_SA, "local_ts", "remote_ts")
_SA_ALGORITHMS = (*_SA, "algorithm", "dh_group")
_CERTIFICATE = ("serial_number", "subject", "not_before", "not_after")

#: 0 up, 1 the IKE_SA alone, 2 down, 3 anything else
_STATUS = {"ESTABLISHED": 1, "INSTALLED": 0, "REKEYED": 0, "REKEYING": 0, "": 2}


def _number(key: str) -> Figure:
    return lambda message: float(message.get(key) or 0)


def _flag(key: str) -> Figure:
    return lambda message: float(message.get(key) == "yes")


def _status(message: Message) -> float:
    return _STATUS.get(str(message["state"]), 3)


_IKE_FIGURES: tuple[tuple[str, str, str, Figure], ...] = (
    ("ike_version", "Version of this IKE", "", _number("version")),
    ("ike_status", "Status of this IKE", "", _status),
    ("ike_initiator", "Flag if the server is the initiator for this connection", "", _flag("initiator")),
    ("ike_nat_local", "Flag if the local endpoint is behind nat", "", _flag("nat-local")),
    ("ike_nat_remote", "Flag if the remote server is behind nat", "", _flag("nat-remote")),
    ("ike_nat_fake", "Flag if NAT situation has been faked as responder", "", _flag("nat-fake")),
    ("ike_nat_any", "Flag if any endpoint is behind a NAT (also if faked)", "", _flag("nat-any")),
    ("ike_encryption_key_size", "Key size of the encryption algorithm", "encr-alg", _number("encr-keysize")),
    ("ike_integrity_key_size", "Key size of the integrity algorithm", "integ-alg", _number("integ-keysize")),
    ("ike_established_seconds", "Seconds since the IKE was established", "", _number("established")),
    ("ike_rekey_seconds", "Seconds until the IKE will be rekeyed", "", _number("rekey-time")),
    ("ike_reauth_seconds", "Seconds until the IKE will be reauthed", "", _number("reauth-time")),
    ("ike_children_size", "Count of children of this IKE", "", lambda message: len(message["child-sas"])),
)
"name, help, the algorithm that is a label, figure"

_SELECTORS = "selectors"
_SA_FIGURES: tuple[tuple[str, str, str, Figure], ...] = (
    ("sa_status", "Status of this child sa", _SELECTORS, _status),
    ("sa_encap", "Forced Encapsulation in UDP Packets", "", _flag("encap")),
    ("sa_encryption_key_size", "Key size of the encryption algorithm", "encr-alg", _number("encr-keysize")),
    ("sa_integrity_key_size", "Key size of the integrity algorithm", "integ-alg", _number("integ-keysize")),
    ("sa_inbound_bytes", "Number of input bytes processed", _SELECTORS, _number("bytes-in")),
    ("sa_inbound_packets", "Number of input packets processed", _SELECTORS, _number("packets-in")),
    ("sa_last_inbound_seconds", "Number of seconds since the last inbound packet was received", _SELECTORS,
     _number("use-in")),
    ("sa_outbound_bytes", "Number of output bytes processed", _SELECTORS, _number("bytes-out")),
    ("sa_outbound_packets", "Number of output packets processed", _SELECTORS, _number("packets-out")),
    ("sa_last_outbound_seconds", "Number of seconds since the last outbound packet was sent", _SELECTORS,
     _number("use-out")),
    ("sa_established_seconds", "Seconds since the child SA was established", "", _number("install-time")),
    ("sa_rekey_seconds", "Seconds until the child SA will be rekeyed", "", _number("rekey-time")),
    ("sa_lifetime_seconds", "Seconds until the lifetime expires", "", _number("life-time")),
)  # fmt: skip
"name, help, which further labels there are, figure"


async def collect(ike: IkeControl, pace: Pace) -> AsyncIterator[Series]:
    """All of them."""
    sas: Described = []
    for sa in list(ike.engine.sas.values()):
        now = asyncio.get_running_loop().time()
        children = [show.child_sa(child, traffic(ike, child), now) for child in sa.children.values()]
        sas.append((sa.name, {**show.ike_sa(sa, now), "child-sas": children}))
        await pace.step()
    yield _series("ike_count", "Number of known IKEs", (), [((), len(sas))])
    for name, help, algorithm, figure in _IKE_FIGURES:
        yield _series(name, help, _IKE_ALGORITHMS if algorithm else _IKE, _ike_rows(sas, algorithm, figure))
    for name, help, more, figure in _SA_FIGURES:
        labels = _SA_SELECTORS if more == _SELECTORS else _SA_ALGORITHMS if more else _SA
        yield _series(name, help, labels, _sa_rows(sas, more, figure))
    for series in (*_certificates(ike), *_connections(list(ike.engine.table.by_name.values()))):
        yield series


def _series(name: str, help: str, labels: tuple[str, ...], rows: Rows) -> Series:
    name = PREFIX + name
    samples = (Sample(name, dict(zip(labels, map(str, values), strict=True)), value) for values, value in rows)
    return Series(name, "gauge", help, samples)


def _ike_rows(sas: Described, algorithm: str, figure: Figure) -> Rows:
    for name, message in sas:
        yield (name, message["uniqueid"], *_algorithms(message, algorithm)), figure(message)


def _sa_rows(sas: Described, more: str, figure: Figure) -> Rows:
    for name, message in sas:
        for child in message["child-sas"]:
            further: tuple[object, ...]
            if more == _SELECTORS:
                further = tuple(";".join(map(str, child[side])) for side in ("local-ts", "remote-ts"))
            else:
                further = _algorithms(child, more)
            yield (name, message["uniqueid"], child["name"], child["uniqueid"], *further), figure(child)


def _algorithms(message: Message, algorithm: str) -> tuple[object, ...]:
    return (message.get(algorithm) or "", message.get("dh-group") or "") if algorithm else ()


def _certificates(ike: IkeControl) -> Iterator[Series]:
    found = list(certificates(ike.engine))
    now = datetime.now(UTC)
    yield _series("cert_count", "Number of X509 certificates", (), [((), len(found))])
    valid = [(_describe(one), one.not_before < now < one.not_after) for one in found]
    yield _series("cert_valid", "X509 certificate validity", _CERTIFICATE, valid)
    left = [(_describe(one), (one.not_after - now).total_seconds()) for one in found]
    yield _series("cert_expire_secs", "Seconds until the X509 certificate expires", _CERTIFICATE, left)


@lru_cache(1024)
def _describe(certificate: Certificate) -> tuple[str, ...]:
    digits = f"{certificate.serial:x}"
    digits = "0" * (len(digits) % 2) + digits
    serial = ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))
    names = {NameOID.SERIAL_NUMBER: "SERIALNUMBER", NameOID.POSTAL_CODE: "POSTALCODE"}
    subject = x509.load_der_x509_certificate(certificate.der).subject.rfc4514_string(names)
    return serial, subject, *(f"{when:%Y-%m-%dT%H:%M:%SZ}" for when in (certificate.not_before, certificate.not_after))


def _connections(loaded: list[Connection]) -> Iterator[Series]:
    yield _series("conn_count", "Number of loaded connections", (), [((), len(loaded))])
    name = ("conn_name",)
    shown = [(one.name, show.connection(one)) for one in loaded]
    versions = [((one, message["version"]), 1) for one, message in shown]
    yield _series("conn_version", "IKE version for connection", (*name, "version"), versions)
    for key, help in (
        ("reauth_time", "IKE_SA reauthentication interval in seconds"),
        ("rekey_time", "IKE_SA rekeying interval in seconds"),
    ):
        yield _series(f"conn_{key}", help, name, [((one,), message[key]) for one, message in shown if message[key]])
    counts = [((one,), len(message["children"])) for one, message in shown]
    yield _series("conn_child_count", "Number of CHILD_SA configurations", name, counts)
    children = [
        ((one, child, fields["mode"]), fields)
        for one, message in shown
        for child, fields in message["children"].items()
    ]
    for key, unit in (("rekey_time", "seconds"), ("rekey_bytes", "bytes"), ("rekey_packets", "packets")):
        rows = [(labels, fields[key]) for labels, fields in children if fields[key]]
        labels = (*name, "child_name", "mode")
        yield _series(f"conn_child_{key}", f"CHILD_SA rekeying interval in {unit}", labels, rows)
