"""Everything that credential files and ``secrets { }`` hold, put together for IKEv2.

A certificate that cannot be read is a warning, since nothing may need it; a private key that cannot be read is an
error: it is there to be used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from ipsec.config.directories import (
    AUTHORITIES,
    CERTIFICATES,
    KEY_DIRECTORIES,
    OCSP_SIGNERS,
    REVOCATION_LISTS,
    UNUSED_DIRECTORIES,
    CredentialFiles,
    inline,
    read_file,
)
from ipsec.config.secrets import Passphrase, Secrets
from ipsec.config.values import error_at
from ipsec.crypto.auth import PrivateKeyObject
from ipsec.crypto.keyfiles import load_pkcs12, load_private_key
from ipsec.crypto.revocation import parse_crl
from ipsec.crypto.x509 import Certificate
from ipsec.errors import ConfigError, ParseError
from ipsec.ike.credentials import Authority, Credentials, PrivateKey

T = TypeVar("T")


def load_credentials(
    files: CredentialFiles, secrets: Secrets, authorities: Sequence[Authority]
) -> tuple[Credentials, tuple[str, ...]]:
    """The credentials, and warnings. ConfigError names the file, or the key that names it."""
    loader = _Loader(files)
    keys, bundled, vouching = loader.private_keys(secrets.passphrases)
    anchors = {authority.certificate: authority for authority in authorities}
    for certificate in (*loader.authorities(), *vouching):
        anchors.setdefault(certificate, Authority(certificate))
    credentials = Credentials(
        secrets=secrets.shared,
        ppks=secrets.ppks,
        eap_secrets=secrets.eap,
        private_keys=keys,
        # not what connections name as the peer's: that is trusted there only
        certificates=(*loader.certificates(CERTIFICATES), *files.own, *bundled, *vouching),
        authorities=anchors.values(),
        ocsp_signers=loader.certificates(OCSP_SIGNERS),
        crls=loader.each(REVOCATION_LISTS, lambda path: parse_crl(read_file(path)[0])),
    )
    for name, why in UNUSED_DIRECTORIES.items():
        if files.scan(name):
            loader.warnings.append(f"the files in {files.path(name, '')} are not read: {why}")
    return credentials, tuple(loader.warnings)


class _Loader:
    """Reads the directories; what is broken and may be becomes a warning."""

    def __init__(self, files: CredentialFiles) -> None:
        self.files = files
        self.warnings: list[str] = []

    def each(self, directory: str, load: Callable[[str], T]) -> list[T]:
        """What ``load`` makes of each file that it can read."""
        found = []
        for path in self.files.scan(directory):
            try:
                found.append(load(path))
            except (ConfigError, ParseError) as error:
                why = str(error) if path in str(error) else f"{path}: {error}"
                self.warnings.append(f"{why}; this file is left out")
        return found

    def certificates(self, directory: str) -> list[Certificate]:
        """The certificates of all files in a directory."""
        return [certificate for several in self.each(directory, self.files.certificates) for certificate in several]

    def authorities(self) -> list[Certificate]:
        """Those of x509ca/. A file that begins with something else is left out, as charon does."""

        def load(path: str) -> list[Certificate]:
            certificates = self.files.certificates(path)
            if not certificates[0].is_ca:
                raise ConfigError(f"{path}: {certificates[0].subject} is not the certificate of an authority")
            return [certificate for certificate in certificates if certificate.is_ca]

        return [certificate for several in self.each(AUTHORITIES, load) for certificate in several]

    def private_keys(
        self, passphrases: Sequence[Passphrase]
    ) -> tuple[list[PrivateKey], list[Certificate], list[Certificate]]:
        """Every private key, and the certificates of PKCS#12 containers: of ends, and of authorities.

        Those are trust anchors, as with charon: who has got a container has got from there whom to trust.
        """
        secrets: dict[str, Passphrase] = {}
        keys: list[PrivateKey] = []
        ends: list[Certificate] = []
        authorities: list[Certificate] = []

        def take(loaded: _Loaded, name: str) -> None:
            keys.extend([PrivateKey(loaded.key, name)] if loaded.key else [])
            ends.extend(loaded.ends)
            authorities.extend(loaded.authorities)

        for passphrase in passphrases:
            try:
                data = inline(passphrase.file)
                if data is not None:
                    take(_load_key(data, passphrase.directory, passphrase), passphrase.section.child_path("file"))
                    continue
                path = self.files.path(passphrase.directory, passphrase.file)
            except ConfigError as error:
                raise error_at(passphrase.section, "file", error.message) from None
            other = secrets.setdefault(path, passphrase)
            if other is not passphrase:
                why = f"{path} has a passphrase in {other.section.path} already"
                raise error_at(passphrase.section, "file", why)
        places = {path: name for name in KEY_DIRECTORIES for path in self.files.scan(name)}
        places |= {path: passphrase.directory for path, passphrase in secrets.items()}
        for path, directory in places.items():
            data, open_to = self._read_key(path, secrets.get(path))
            if open_to:
                self.warnings.append(open_to)
            try:
                take(_load_key(data, directory, secrets.get(path)), path)
            except ConfigError as error:
                raise _key_error(path, secrets.get(path), error.message) from None
        return keys, ends, authorities

    def _read_key(self, path: str, passphrase: Passphrase | None) -> tuple[bytes, str]:
        try:
            return read_file(path)
        except ConfigError as error:
            raise _key_error(path, passphrase, error.message) from None


class _Loaded(NamedTuple):
    """What is in a file."""

    key: PrivateKeyObject | None
    ends: tuple[Certificate, ...] = ()
    authorities: tuple[Certificate, ...] = ()


def _load_key(data: bytes, directory: str, passphrase: Passphrase | None) -> _Loaded:
    secret = passphrase.secret if passphrase else None
    try:
        if directory == "pkcs12":
            return _Loaded(*load_pkcs12(data, secret))
        return _Loaded(load_private_key(data, secret))
    except ConfigError as error:
        if secret is None and "passphrase" in error.message:
            why = f"{error.message}; passphrases are in secrets.{directory}<suffix> {{ file, secret }}"
            raise ConfigError(why) from None
        raise


def _key_error(path: str, passphrase: Passphrase | None, message: str) -> ConfigError:
    """An error about a key file: at the passphrase if there is one, else at the file."""
    if passphrase is None:
        return ConfigError(message.removeprefix(f"cannot read {path}: "), file=path)
    return error_at(passphrase.section, "file", message if path in message else f"{path}: {message}")
