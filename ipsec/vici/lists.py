"""Commands that tell what there is: list-*, get-*, stats, version.

A list goes out in batches: between them the event loop sees to everything else, and a client that is slow to read is
waited for. What is listed may change meanwhile; what has gone by then is left out.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ipsec.crypto.identity import ANY_IDENTITY, IdentityPattern, parse_pattern
from ipsec.crypto.kex import supported_methods
from ipsec.crypto.prf import supported_prfs
from ipsec.crypto.revocation import Crl
from ipsec.crypto.sk import sk_suite
from ipsec.crypto.x509 import Certificate
from ipsec.errors import ConfigError, ParseError, SuiteError
from ipsec.ike.config import ChildMode, RemoteAuth
from ipsec.ike.counters import NAMES
from ipsec.ike.sa import IkeSa
from ipsec.ike.state import IkeState
from ipsec.vici import show
from ipsec.vici.actions import count_up, number, truth
from ipsec.vici.codec import Message, text
from ipsec.vici.control import Control
from ipsec.vici.server import Client, CommandError, Handler
from ipsec.wire.iana import Encr, Integ, TransformType
from ipsec.wire.proposal import Transform

#: events between two looks at everything else
BATCH = 16
#: leases that fit into one answer with room to spare
LEASES_MAX = 4096
#: as large as charon calls any pool: programs expect a number of 32 bits
POOL_SIZE_MAX = (1 << 31) - 2

_CERTIFICATE_TYPES = ("ANY", "X509", "X509_AC", "X509_CRL", "OCSP_RESPONSE", "PUBKEY")
_FLAGS = ("ANY", "NONE", "CA", "AA", "OCSP")


class Lists:
    """The commands; see the module's text."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._since = time.time()
        self._begin = control.now()
        self.commands: dict[str, Handler] = {
            "version": self.version,
            "stats": self.stats,
            "list-sas": self.list_sas,
            "list-policies": self.list_policies,
            "list-conns": self.list_conns,
            "get-conns": self.get_conns,
            "list-certs": self.list_certs,
            "list-authorities": self.list_authorities,
            "get-authorities": self.get_authorities,
            "get-pools": self.get_pools,
            "get-algorithms": self.get_algorithms,
            "get-counters": self.get_counters,
            "reset-counters": self.reset_counters,
        }

    async def version(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Who we are. The name is ours; what clients look at is the version."""
        system = os.uname()
        return {
            "daemon": "ipsecd",
            "version": self._control.version,
            "sysname": system.sysname,
            "release": system.release,
            "machine": system.machine,
        }

    async def stats(self, client: Client, message: Message) -> Mapping[str, Any]:
        """How the daemon is. There are no worker threads with priorities: one event loop does what they would do."""
        total, half_open = count_up(self._control.engine.sas.values())
        classes = ("critical", "high", "medium", "low")
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "uptime": {
                "running": _duration(self._control.now() - self._begin),
                "since": time.strftime("%b %d %H:%M:%S %Y", time.localtime(self._since)),
            },
            "workers": {"total": 1, "idle": 0, "active": dict.fromkeys(classes, 0) | {"medium": 1}},
            "queues": dict.fromkeys(classes, 0),
            "scheduled": len(self._control.engine.timers),
            "ikesas": {"total": total, "half-open": half_open},
            "plugins": ["vici", "ikev2", "esp", platform.python_implementation().lower()],
            "mallinfo": {"sbrk": usage.ru_maxrss * 1024, "mmap": 0, "used": usage.ru_maxrss * 1024, "free": 0},
        }

    # -- what is up

    async def list_sas(self, client: Client, message: Message) -> Mapping[str, Any]:
        """IKE_SAs with their CHILD_SAs, one event each.

        ``child`` and ``child-id`` choose among the CHILD_SAs only: who asks for one learns also that its IKE_SA is up
        without it.
        """
        ike, ike_id = text(message, "ike"), number(message, "ike-id")
        child, child_id = text(message, "child"), number(message, "child-id")
        wanted = [sa for sa in self._control.engine.sas.values() if ike in ("", sa.name) and ike_id in (0, sa.uid)]

        def events() -> Iterable[Message]:
            for sa in wanted:
                if sa.state is IkeState.DESTROYING:
                    continue
                yield self.describe(sa, lambda one: child in ("", one.name) and child_id in (0, one.uid))

        await stream(client, "list-sa", events())
        return {}

    def describe(self, sa: IkeSa, wanted: Callable[[Any], bool] = lambda _: True) -> Message:
        """An IKE_SA with those of its CHILD_SAs, which come last: swanctl prints the IKE_SA when it gets to them."""
        now = self._control.now()
        children = {
            f"{child.name}-{child.uid}": show.child_sa(child, self._control.traffic(child), now)
            for child in sa.children.values()
            if wanted(child)
        }
        return {sa.name: {**show.ike_sa(sa, now), "child-sas": children}}

    async def list_policies(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Traps and shunts."""
        kinds = {kind for kind in ("trap", "drop", "pass") if truth(message, kind)}
        ike, name = text(message, "ike"), text(message, "child")
        found = []
        for connection, child, reqid in self._control.policies():
            kind = child.mode.value if child.mode in (ChildMode.PASS, ChildMode.DROP) else "trap"
            if kind in kinds and ike in ("", connection.name) and name in ("", child.name):
                found.append({f"{connection.name}/{child.name}": show.policy(connection, child, reqid)})
        # as charon has them: traps come before shunts
        found.sort(key=lambda item: next(iter(item.values()))["mode"] in ("PASS", "DROP"))
        await stream(client, "list-policy", found)
        return {}

    # -- what is loaded

    async def list_conns(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Connections, one event each."""
        ike = text(message, "ike")
        wanted = [one for one in self._control.engine.table.by_name.values() if ike in ("", one.name)]
        await stream(client, "list-conn", ({one.name: show.connection(one)} for one in wanted))
        return {}

    async def get_conns(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Names of the connections."""
        return {"conns": list(self._control.engine.table.by_name)}

    async def list_certs(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Certificates and revocation lists, one event each."""
        kind, flag = text(message, "type", "ANY").upper(), text(message, "flag", "ANY").upper()
        subject = _subject(message)
        if kind not in _CERTIFICATE_TYPES:
            raise CommandError(f"invalid certificate type '{kind}'")
        if flag not in _FLAGS:
            raise CommandError(f"invalid certificate flag '{flag}'")
        found: list[Message] = []
        if kind in ("ANY", "X509"):
            found += self._certificates(flag, subject)
        if kind in ("ANY", "X509_CRL"):
            crls = {crl.der: crl for crl in (*self._control.engine.credentials.crls, *self._control.engine.status.crls)}
            found += [_crl(crl) for crl in crls.values() if subject.matches(crl.issuer)]
        if kind in ("ANY", "PUBKEY"):
            found += self._public_keys(subject)
        await stream(client, "list-cert", found)
        return {}

    def _public_keys(self, subject: IdentityPattern) -> list[Message]:
        """Raw public keys that are loaded, and those of connections, which are of whom the connection says."""
        found: dict[tuple[bytes, str], None] = {}
        if subject.any:
            found |= dict.fromkeys((key, "") for key in self._control.public_keys())
        for one in self._control.engine.table.by_name.values():
            for key, whose in (
                *((key, auth.id) for auth in one.all_local for key in auth.pubkeys),
                *((key, auth.id.exact) for auth in one.all_remote for key in auth.pubkeys),
            ):
                if subject.any or (whose is not None and subject.matches(whose)):
                    found[key, str(whose or "")] = None
        return [{"type": "PUBKEY", "data": key, "subject": whose or None} for key, whose in found]

    def _certificates(self, flag: str, subject: IdentityPattern) -> list[Message]:
        credentials = self._control.engine.credentials
        found = []
        anchors = set(credentials.anchors)
        configured = [
            one
            for connection in self._control.engine.table.by_name.values()
            for auth in connection.all_auth
            for one in (*auth.certs, *(auth.cacerts if isinstance(auth, RemoteAuth) else ()))
        ]
        loaded = dict.fromkeys((*credentials.certificates, *credentials.anchors, *configured), "NONE")
        for certificate, kind in (loaded | dict.fromkeys(credentials.ocsp_signers, "OCSP")).items():
            kind = "CA" if certificate in anchors or certificate.is_ca else kind
            if flag not in ("ANY", kind) or not _is_of(certificate, subject):
                continue
            own = credentials.private_key_for(certificate) is not None
            found.append(_certificate(certificate, kind, own))
        return found

    async def list_authorities(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Trust anchors that have a name, one event each."""
        name = text(message, "name")
        found = [
            {
                one.name: {
                    "cacert": str(one.certificate.subject),
                    "crl_uris": list(one.crl_uris),
                    "ocsp_uris": list(one.ocsp_uris),
                }
            }
            for one in self._control.engine.credentials.authorities
            if one.name and name in ("", one.name)
        ]
        await stream(client, "list-authority", found)
        return {}

    async def get_authorities(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Their names."""
        return {"authorities": [one.name for one in self._control.engine.credentials.authorities if one.name]}

    async def get_pools(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Pools with how many addresses are in use, and who has them."""
        name, leases = text(message, "name"), truth(message, "leases")
        found: dict[str, Message] = {}
        room = LEASES_MAX
        for pool in self._control.engine.pools.values():
            if name not in ("", pool.name):
                continue
            entry: Message = {
                "base": pool.config.first,
                "size": min(pool.size, POOL_SIZE_MAX),
                "online": pool.online,
                "offline": pool.offline,
            }
            if leases:
                # one packet has to hold them all
                some = [lease for _, lease in zip(range(room), pool.leases(), strict=False)]
                room -= len(some)
                entry["leases"] = {
                    str(index): {
                        "address": lease.address,
                        "identity": str(lease.identity),
                        "status": "online" if lease.online else "offline",
                    }
                    for index, lease in enumerate(some)
                }
            found[pool.name] = entry
        return found

    async def get_algorithms(self, client: Client, message: Message) -> Mapping[str, Any]:
        """What IKE can use, by kind."""
        return algorithms()

    # -- counters

    async def get_counters(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Counters in all, of one connection, or of each."""
        counters = self._control.engine.counters
        name = text(message, "name")
        if truth(message, "all"):
            found = {known: counters.named[known] for known in counters.named}
        elif name:
            if name not in counters.named:
                raise CommandError("no counters found for this connection", counters={})
            found = {name: counters.named[name]}
        else:
            found = {"": counters.all}
        return {
            "counters": {known: {one: values[one] for one in NAMES} for known, values in found.items()},
            "success": "yes",
        }

    async def reset_counters(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Begin to count anew. A connection for which nothing was counted yet is no error, as in charon."""
        counters = self._control.engine.counters
        if truth(message, "all"):
            for known in list(counters.named):
                counters.reset(known)
        else:
            counters.reset(text(message, "name"))
        return {"success": "yes"}


async def stream(client: Client, event: str, messages: Iterable[Mapping[str, Any] | None]) -> None:
    """Send events in batches; None is work that came to nothing."""
    for index, message in enumerate(messages, 1):
        if client.gone:
            return
        if message is not None:
            client.send_event(event, message)
        if index % BATCH == 0:
            await client.flush()
            await asyncio.sleep(0)


def _duration(seconds: float) -> str:
    """As charon has it: a number and the largest unit of which there are at least two."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds > 2 * length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} second{'s' if int(seconds) != 1 else ''}"


def _subject(message: Message) -> IdentityPattern:
    """Whose certificates are wanted: an identity, as in swanctl.conf also with wildcards. CommandError."""
    try:
        return parse_pattern(text(message, "subject")) if "subject" in message else ANY_IDENTITY
    except ConfigError as error:
        raise CommandError(f"invalid subject: {error.message}") from None


def _is_of(certificate: Certificate, subject: IdentityPattern) -> bool:
    """Whether a certificate has an identity: its subject, an alternative name, or a key identifier, as in charon."""
    if subject.any or subject.matches(certificate.subject):
        return True
    try:
        return any(map(subject.matches, certificate.identities)) or (
            subject.exact is not None and certificate.has_identity(subject.exact)
        )
    except ParseError:
        # names that cannot be read
        return False


def _certificate(certificate: Certificate, flag: str, own: bool) -> Message:
    return {
        "type": "X509",
        "flag": flag,
        "has_privkey": "yes" if own else None,
        "data": certificate.der,
    }


def _crl(crl: Crl) -> Message:
    return {"type": "X509_CRL", "data": crl.der}


def _usable(encr: int, integ: int) -> bool:
    """Whether an IKE_SA can be protected so."""
    for bits in (128, 0):
        try:
            sk_suite(encr, bits, integ)
        except SuiteError:
            continue
        return True
    return False


def algorithms() -> dict[str, dict[str, str]]:
    """Algorithms of IKE by vici's kinds, each with the library that does it."""
    by = "cryptography"

    def names(kind: int, numbers: Iterable[int]) -> dict[str, str]:
        return {show.algorithm(Transform(kind, number)): by for number in numbers}

    return {
        "encryption": names(TransformType.ENCR, (one for one in Encr if _usable(one, Integ.HMAC_SHA2_256_128))),
        "integrity": names(TransformType.INTEG, (one for one in Integ if one and _usable(Encr.AES_CBC, one))),
        "aead": names(TransformType.ENCR, (one for one in Encr if _usable(one, Integ.NONE))),
        "hasher": dict.fromkeys((f"HASH_{name}" for name in ("SHA1", "SHA2_256", "SHA2_384", "SHA2_512")), by),
        "prf": names(TransformType.PRF, supported_prfs()),
        "ke": names(TransformType.KE, supported_methods()),
        "rng": {"RNG_STRONG": "kernel"},
        "nonce-gen": {"NONCE_GEN": "kernel"},
    }
