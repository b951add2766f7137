"""Credential files: the directories next to swanctl.conf, and the files that its keys name.

    x509                                certificates: ours, what is above them, peers that are trusted as they are
    x509ca x509crl                      trust anchors, revocation lists
    x509ocsp                            whoever is trusted to sign OCSP responses besides the authorities
    private rsa ecdsa pkcs8 pkcs12      private keys; PKCS#12 containers also have certificates and trust anchors
    pubkey                              raw public keys: only those that a connection names

Every file in them is read, PEM or DER; names that begin with a dot are not. The environment variable SWANCTL_DIR names
the directory they are in, else it is that of the configuration file.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from typing import TypeVar

from ipsec.config.sources import note, why_unread
from ipsec.config.values import read_regular
from ipsec.crypto.identity import Identity
from ipsec.crypto.keyfiles import load_public_key
from ipsec.crypto.x509 import Certificate, load_certificates
from ipsec.errors import ConfigError, ParseError

T = TypeVar("T")

CERTIFICATES = "x509"
AUTHORITIES = "x509ca"
REVOCATION_LISTS = "x509crl"
OCSP_SIGNERS = "x509ocsp"
PUBLIC_KEYS = "pubkey"
#: names of sections in ``secrets`` begin with one of these
KEY_DIRECTORIES = ("private", "rsa", "ecdsa", "pkcs8", "pkcs12")
#: what strongSwan knows besides
UNUSED_DIRECTORIES = {
    "x509aa": "attribute certificates are not supported",
    "x509ac": "attribute certificates are not supported",
    "bliss": "BLISS keys are not supported",
}

FILE_SIZE_MAX = 16 << 20
"revocation lists can be large"
FILES_MAX = 100_000


def base_directory(file: str, environment: Mapping[str, str] = os.environ) -> str:
    """Where the credential directories of the configuration ``file`` are."""
    return environment.get("SWANCTL_DIR") or os.path.dirname(file) or "."


class CredentialFiles:
    """Reads credential files, each certificate file once. ConfigError without a place says which file and why."""

    def __init__(self, base: str | None) -> None:
        self.base = base
        "None: there are no directories, only inline values and absolute paths"
        self.own: dict[Certificate, None] = {}
        "what connections name as ours, with all else in those files: what stands above it"
        self._certificates: dict[str, tuple[Certificate, ...]] = {}

    def path(self, directory: str, name: str) -> str:
        """The path of a file that a key names; relative ones are in ``directory``."""
        if os.path.isabs(name):
            return name
        if self.base is None:
            raise ConfigError(f"there is no directory {directory}/, write an absolute path")
        return os.path.join(self.base, directory, name)

    def scan(self, directory: str) -> list[str]:
        """Paths of the files in a directory, sorted; none if it is not there."""
        if self.base is None:
            return []
        path = os.path.join(self.base, directory)
        note(path)
        try:
            with os.scandir(path) as entries:
                names = [entry.name for entry in entries if not entry.name.startswith(".") and not entry.is_dir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(f"cannot read the directory: {why_unread(error)}", file=path) from None
        if len(names) > FILES_MAX:
            raise ConfigError(f"more than {FILES_MAX} files", file=path)
        return [os.path.join(path, name) for name in sorted(names)]

    def certificates(self, path: str) -> tuple[Certificate, ...]:
        """The certificates in a file, at least one."""
        if path not in self._certificates:
            self._certificates[path] = _certificates(read_file(path)[0], path)
        return self._certificates[path]

    def named_certificates(self, directory: str, text: str) -> tuple[Certificate, ...]:
        """The certificates in the file that a key names, or in the key as 0x hexadecimal or 0s Base64.

        The first is the one that is meant.
        """
        data = inline(text)
        return self.certificates(self.path(directory, text)) if data is None else _certificates(data, "this value")

    def named_public_key(self, text: str) -> bytes:
        """The raw public key (DER SubjectPublicKeyInfo) that a key names or holds."""
        data = inline(text)
        path = self.path(PUBLIC_KEYS, text) if data is None else "this value"
        try:
            return load_public_key(read_file(path)[0] if data is None else data)
        except ConfigError as error:
            raise ConfigError(error.message if path in error.message else f"{path}: {error.message}") from None

    def describe(self, certificate: Certificate) -> str:
        """A certificate by its file, if it is from one, and its subject."""
        for path, several in self._certificates.items():
            if certificate in several:
                return f"{path} ({certificate.subject})"
        return f"certificate {certificate.subject}"


def read_file(path: str) -> tuple[bytes, str]:
    """Contents of a regular file, and who else can read it, see ``read_regular``. ConfigError says which file."""
    return read_regular(path, FILE_SIZE_MAX)


def inline(text: str) -> bytes | None:
    """The octets of ``0x...`` or ``0s...``, None if the text is the name of a file."""
    try:
        if text[:2] in ("0x", "0X"):
            return bytes.fromhex(text[2:])
        if text[:2] in ("0s", "0S"):
            return base64.b64decode(text[2:], validate=True)
    except (ValueError, binascii.Error):
        raise ConfigError(f"not valid {'hexadecimal' if text[1] in 'xX' else 'Base64'}") from None
    return None


def _certificates(data: bytes, path: str) -> tuple[Certificate, ...]:
    try:
        return load_certificates(data)
    except ParseError as error:
        raise ConfigError(f"{path}: {error}") from None


def confirms(certificate: Certificate, identity: Identity) -> bool:
    """Whether a certificate vouches for an identity; a malformed one does not."""
    try:
        return certificate.has_identity(identity)
    except ParseError:
        return False
