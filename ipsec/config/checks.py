"""What only the whole configuration shows: whether connections have the keys, secrets and pools that they need."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from datetime import UTC, datetime

from ipsec.config.children import child_warnings
from ipsec.config.connections import single_host
from ipsec.config.directories import KEY_DIRECTORIES, CredentialFiles, confirms
from ipsec.config.eap import eap_warnings, uses_tls
from ipsec.config.grammar import Section
from ipsec.config.refused import side_of, warning_at
from ipsec.config.values import error_at, parse_time, quoted, suggestion
from ipsec.crypto.auth import describe_key
from ipsec.crypto.identity import Identity, IdentityPattern
from ipsec.crypto.x509 import Certificate
from ipsec.errors import ParseError
from ipsec.ike.config import AuthClass, Childless, Connection, LocalAuth
from ipsec.ike.credentials import Credentials

_KEY_PLACES = ", ".join(f"{name}/" for name in KEY_DIRECTORIES)


class Checker:
    """Completes and checks connections against what else the configuration has."""

    def __init__(self, files: CredentialFiles, credentials: Credentials, pools: Collection[str]) -> None:
        self._files = files
        self._credentials = credentials
        self._pools = pools
        keyless = [one for one in credentials.certificates if credentials.private_key_for(one) is None]
        self._anchors = bool(credentials.authorities or any(map(_may_be_a_peer, keyless)))
        self._wall = datetime.now(UTC)
        self._ours: dict[Identity | None, tuple[Certificate, ...]] = {}

    def complete(self, section: Section, connection: Connection) -> Connection:
        """The connection with our certificates found where it names none. ConfigError for what it lacks."""
        for pool in connection.pools:
            if pool not in self._pools:
                why = f"there is no pool {quoted(pool)}{suggestion(pool, self._pools)}"
                raise error_at(section, "pools", why)
        local = connection.local
        if local.method is AuthClass.EAP and not local.certs:
            return replace(connection, local=replace(local, certs=self._certificates_of_user(local)))
        if local.method is not AuthClass.PUBKEY or _needs_no_peer(connection):
            return connection
        part = side_of(section, "local")
        if not local.certs and not local.pubkeys:
            certs = self._certificates_of(local.id)
            if not certs:
                whose = f" for {local.id}" if local.id else ""
                why = f"there is no certificate with a private key{whose}, name one here or have auth = psk"
                raise error_at(part, "certs", why)
            return replace(connection, local=replace(local, certs=certs))
        for certificate in local.certs:
            if self._credentials.private_key_for(certificate) is None:
                why = f"{self._files.describe(certificate)} has no private key in {_KEY_PLACES}"
                raise error_at(part, "certs", why)
        if local.pubkeys and self._credentials.private_key_for(local.pubkeys[0]) is None:
            raise error_at(part, "pubkeys", f"the public key has no private key in {_KEY_PLACES}")
        return connection

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
        local, remote = connection.local, connection.remote
        for certificate in local.certs:
            first, last = (f"{time:%Y-%m-%d}" for time in (certificate.not_before, certificate.not_after))
            why = f"expired on {last}" if certificate.not_after < self._wall else ""
            if certificate.not_before > self._wall:
                why = f"is not valid before {first}, is this host's clock right?"
            if why:
                yield warning_at(side_of(section, "local"), "certs", f"{self._files.describe(certificate)} {why}")
        yield from self._key_warnings(section, local)
        if AuthClass.PSK in (local.method, remote.method) and not self._has_psk(local.id, remote.id):
            ours, theirs = local.id or "our address", remote.id
            part = side_of(section, "local" if local.method is AuthClass.PSK else "remote")
            yield warning_at(part, "auth", f"the section secrets has no preshared key for {ours} and {theirs}")
        yield from eap_warnings(section, connection, self._credentials)
        yield from self._ppk_warnings(section, connection)
        anchors = remote.certs or remote.cacerts or remote.pubkeys
        if local.method is AuthClass.PSK and "auth" not in side_of(section, "remote").values:
            # charon takes whatever the peer comes with
            why = "is not set, and the default is pubkey: write auth = psk if the peer has the preshared key too"
            yield warning_at(side_of(section, "remote"), "auth", f"{why}, else auth = pubkey")
        elif (remote.method is AuthClass.PUBKEY or uses_tls(remote)) and not anchors and not self._anchors:
            places = "no trust anchor in x509ca/ or pkcs12/ and no peer's certificate in x509/"
            yield warning_at(side_of(section, "remote"), "auth", f"there is {places}, no peer can be checked")

    def _key_warnings(self, section: Section, local: LocalAuth) -> Iterator[str]:
        """Our keys that ``auth`` does not take: nothing could be signed, and only the peer's log would hint at it."""
        spkis = [certificate.spki for certificate in local.certs] or local.pubkeys[:1]
        for spki in spkis if local.method is AuthClass.PUBKEY else ():
            private = self._credentials.private_key_for(spki)
            if private and not any(rule.takes_key(private.key) for rule in local.constraints.for_auth):
                why = f"{quoted(str(local.constraints))} does not take our key, {describe_key(private.key)}"
                yield warning_at(side_of(section, "local"), "auth", f"{why}: we cannot authenticate ourselves")

    def _ppk_warnings(self, section: Section, connection: Connection) -> Iterator[str]:
        wanted = connection.ppk_id.exact if connection.ppk_id is not None else None
        if AuthClass.EAP in (connection.local.method, connection.remote.method):
            return
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
