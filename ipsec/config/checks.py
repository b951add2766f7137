"""What only the whole configuration shows: whether connections have the keys, secrets and pools that they need."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from ipsec.config.children import child_warnings
from ipsec.config.connections import single_host
from ipsec.config.directories import KEY_DIRECTORIES, CredentialFiles, confirms
from ipsec.config.eap import eap_warnings, is_alone, uses_tls
from ipsec.config.grammar import Section
from ipsec.config.refused import warning_at
from ipsec.config.rounds import parts_of, round_warnings
from ipsec.config.values import error_at, parse_time, quoted, suggestion
from ipsec.crypto.auth import describe_key
from ipsec.crypto.identity import Identity, IdentityPattern
from ipsec.crypto.x509 import Certificate
from ipsec.errors import ParseError
from ipsec.ike.config import RADIUS, AuthClass, Childless, Connection, LocalAuth
from ipsec.ike.credentials import Credentials

_KEY_PLACES = ", ".join(f"{name}/" for name in KEY_DIRECTORIES)


class Checker:
    """Completes and checks connections against what else the configuration has."""

    def __init__(
        self, files: CredentialFiles, credentials: Credentials, pools: Collection[str], *, radius: bool
    ) -> None:
        """``radius``: there are RADIUS servers."""
        self._files = files
        self._credentials = credentials
        self._pools = pools
        self._radius = radius
        keyless = [one for one in credentials.certificates if credentials.private_key_for(one) is None]
        self._anchors = bool(credentials.authorities or any(map(_may_be_a_peer, keyless)))
        self._wall = datetime.now(UTC)
        self._ours: dict[Identity | None, tuple[Certificate, ...]] = {}

    def complete(self, section: Section, connection: Connection) -> Connection:
        """The connection with our certificates found where it names none. ConfigError for what it lacks."""
        for pool in connection.pools:
            if pool not in self._pools and pool != RADIUS:
                why = f"there is no pool {quoted(pool)}{suggestion(pool, self._pools)}"
                raise error_at(section, "pools", why)
        rounds = zip(parts_of(section, "local"), connection.all_local, strict=True)
        needed = not _needs_no_peer(connection)
        local, *more = (self._with_certificates(part, one, needed=needed) for part, one in rounds)
        if (local, *more) == connection.all_local:
            return connection
        return replace(connection, local=local, local_rounds=tuple(more))

    def _with_certificates(self, part: Section, local: LocalAuth, *, needed: bool) -> LocalAuth:
        """One round of ours. ConfigError for what is ``needed`` and not there."""
        if local.method is AuthClass.EAP and not local.certs:
            return replace(local, certs=self._certificates_of_user(local))
        if local.method is not AuthClass.PUBKEY or not needed:
            return local
        if not local.certs and not local.pubkeys:
            certs = self._certificates_of(local.id)
            if not certs:
                whose = f" for {local.id}" if local.id else ""
                why = f"there is no certificate with a private key{whose}, name one here or have auth = psk"
                raise error_at(part, "certs", why)
            return replace(local, certs=certs)
        for certificate in local.certs:
            if self._credentials.private_key_for(certificate) is None:
                why = f"{self._files.describe(certificate)} has no private key in {_KEY_PLACES}"
                raise error_at(part, "certs", why)
        if local.pubkeys and self._credentials.private_key_for(local.pubkeys[0]) is None:
            raise error_at(part, "pubkeys", f"the public key has no private key in {_KEY_PLACES}")
        return local

    def warnings(self, section: Section, connection: Connection) -> Iterator[str]:
        """What is allowed but will hardly do what is meant."""
        if not connection.children and connection.childless is not Childless.FORCE:
            yield warning_at(section, "children", "there are none: nothing will pass, see childless")
        timeout = section.values.get("dpd_timeout")
        if timeout is not None and parse_time(timeout.text or "0"):
            # charon heeds it with IKEv1 alone, and it stands in many files for IKEv2
            why = "not heeded, as by charon with IKEv2: ipsecd.retransmit_tries and _timeout say when a peer is dead"
            yield warning_at(section, "dpd_timeout", why)
        for child in connection.children:
            yield from child_warnings(section.sections["children"].sections[child.name], child)
        if not _needs_no_peer(connection):
            yield from self._authentication_warnings(section, connection)

    def _authentication_warnings(self, section: Section, connection: Connection) -> Iterator[str]:
        ours = list(zip(parts_of(section, "local"), connection.all_local, strict=True))
        theirs = list(zip(parts_of(section, "remote"), connection.all_remote, strict=True))
        for part, local in ours:
            yield from self._validity_warnings(part, local)
            yield from self._key_warnings(part, local)
        shared = [(part, one.id, connection.remote.id) for part, one in ours if one.method is AuthClass.PSK]
        shared += [(part, connection.local.id, one.id) for part, one in theirs if one.method is AuthClass.PSK]
        told = set()
        for part, us, them in shared:
            # one warning for two ends with the same key
            if (us, them) not in told and not self._has_psk(us, them):
                told.add((us, them))
                why = f"the section secrets has no preshared key for {us or 'our address'} and {them}"
                yield warning_at(part, "auth", why)
        yield from round_warnings(section, connection)
        yield from eap_warnings(section, connection, self._credentials, radius=self._radius)
        yield from self._ppk_warnings(section, connection)
        part, remote = theirs[0]
        if connection.local.method is AuthClass.PSK and "auth" not in part.values:
            # charon takes whatever the peer comes with
            why = "is not set, and the default is pubkey: write auth = psk if the peer has the preshared key too"
            yield warning_at(part, "auth", f"{why}, else auth = pubkey")
            theirs.pop(0)
        for part, remote in theirs:
            by_certificate = remote.method is AuthClass.PUBKEY or uses_tls(remote) or is_alone(connection)
            if by_certificate and not (remote.certs or remote.cacerts or remote.pubkeys or self._anchors):
                places = "no trust anchor in x509ca/ or pkcs12/ and no peer's certificate in x509/"
                yield warning_at(part, "auth", f"there is {places}, no peer can be checked")

    def _validity_warnings(self, part: Section, local: LocalAuth) -> Iterator[str]:
        for certificate in local.certs:
            first, last = (f"{time:%Y-%m-%d %H:%M:%S} UTC" for time in (certificate.not_before, certificate.not_after))
            why = f"expired {last}" if certificate.not_after < self._wall else ""
            if certificate.not_before > self._wall:
                why = f"is not valid before {first}, is this host's clock right?"
            if why:
                yield warning_at(part, "certs", f"{self._files.describe(certificate)} {why}")

    def _key_warnings(self, part: Section, local: LocalAuth) -> Iterator[str]:
        """Our keys that ``auth`` does not take: nothing could be signed, and only the peer's log would hint at it."""
        spkis = [certificate.spki for certificate in local.certs] or local.pubkeys[:1]
        for spki in spkis if local.method is AuthClass.PUBKEY else ():
            private = self._credentials.private_key_for(spki)
            if private and not any(rule.takes_key(private.key) for rule in local.constraints.for_auth):
                why = f"{quoted(str(local.constraints))} does not take our key, {describe_key(private.key)}"
                yield warning_at(part, "auth", f"{why}: we cannot authenticate ourselves")

    def _ppk_warnings(self, section: Section, connection: Connection) -> Iterator[str]:
        wanted = connection.ppk_id.exact if connection.ppk_id is not None else None
        if wanted is not None and self._credentials.find_ppk(wanted.data) is None:
            yield warning_at(section, "ppk_id", "the section secrets has no ppk of that id")
        if wanted is None and connection.ppk_required and any(map(single_host, connection.remote_addrs)):
            why = "this end cannot begin, ppk_id does not say which postquantum preshared key to ask for"
            yield warning_at(section, "ppk_required", why)

    def _has_psk(self, local: Identity | None, remote: IdentityPattern) -> bool:
        """Whether a preshared key can be found once both identities are known."""
        if local is not None and self._credentials.find_psk(local, remote.exact) is not None:
            return True
        if local is not None and remote.exact is not None:
            return False
        for secret in self._credentials.secrets:
            for owner in secret.owners:
                theirs = owner.exact is None or remote.matches(owner.exact)
                # without an id we are known by our address
                ours = local is None and owner.exact is not None and owner.exact.address is not None
                if theirs or ours:
                    return True
            if not secret.owners:
                return True
        return False

    def _certificates_of_user(self, local: LocalAuth) -> tuple[Certificate, ...]:
        """Our certificates for EAP-TLS, where it is the method or may become it. That there are none is no error:
        vici may load what is needed later, and a server that is free to choose may want a password."""
        user = local.eap_id or local.id
        if uses_tls(local) or (local.eap_type == 0 and user is not None):
            return self._certificates_of(user)
        return ()

    def _certificates_of(self, identity: Identity | None) -> tuple[Certificate, ...]:
        """Our certificates that confirm ``identity``, all of ours for None."""
        if identity not in self._ours:
            self._ours[identity] = tuple(
                certificate
                for certificate in self._credentials.certificates
                if (identity is None or confirms(certificate, identity))
                and self._credentials.private_key_for(certificate) is not None
            )
        return self._ours[identity]


def _may_be_a_peer(certificate: Certificate) -> bool:
    """Whether a certificate can be trusted as it is; an intermediate authority is a step to an anchor and none itself.

    Self-signed ones often say that they are authorities.
    """
    try:
        return certificate.self_issued or not certificate.is_ca
    except ParseError:
        return False


def _needs_no_peer(connection: Connection) -> bool:
    """Whether a connection is there for what its children pass or drop alone, so that nobody has to prove anything."""
    return bool(connection.children) and all(child.shunt for child in connection.children)
