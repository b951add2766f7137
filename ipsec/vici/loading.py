"""Commands that change what is loaded: load-*, unload-*, get-keys, get-shared, clear-creds, flush-certs.

An error says what is wrong with which key; it goes into ``errmsg`` and into the log. Secrets are in neither.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ipsec.errors import ConfigError, IpsecError
from ipsec.vici.codec import Message, text, texts
from ipsec.vici.control import Control
from ipsec.vici.server import Client, CommandError, Handler

log = logging.getLogger(__name__)

OK: Mapping[str, Any] = {"success": "yes"}
_KEY_TYPES = ("any", "rsa", "ecdsa", "ed25519", "ed448")
#: XAUTH is another name of EAP
_SECRETS = {"IKE": "IKE", "EAP": "EAP", "XAUTH": "EAP", "NTLM": "NTLM", "PPK": "PPK"}
_CERTIFICATE_FLAGS = ("NONE", "CA", "OCSP", "AA")
_CERTIFICATE_TYPES = ("ANY", "X509", "X509_AC", "X509_CRL", "OCSP_RESPONSE", "PUBKEY")
#: types of older clients, as type and flag; names of swanctl's directories
_OLD_TYPES = {
    "ANY": ("X509", ""),
    "X509CA": ("X509", "CA"),
    "X509AA": ("X509", "AA"),
    "X509OCSP": ("X509", "OCSP"),
    "X509AC": ("X509_AC", ""),
    "X509CRL": ("X509_CRL", ""),
}


class Loading:
    """The commands; see the module's text."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self.commands: dict[str, Handler] = {
            name: _told(name, handler)
            for name, handler in (
                ("load-conn", self.load_conn),
                ("unload-conn", self.unload_conn),
                ("load-cert", self.load_cert),
                ("load-key", self.load_key),
                ("unload-key", self.unload_key),
                ("get-keys", self.get_keys),
                ("load-shared", self.load_shared),
                ("unload-shared", self.unload_shared),
                ("get-shared", self.get_shared),
                ("load-token", self.load_token),
                ("flush-certs", self.flush_certs),
                ("clear-creds", self.clear_creds),
                ("load-authority", self.load_authority),
                ("unload-authority", self.unload_authority),
                ("load-pool", self.load_pool),
                ("unload-pool", self.unload_pool),
                ("reload-settings", self.reload_settings),
            )
        }

    # -- connections

    async def load_conn(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Load connections; those before one that is wrong stay."""
        for name, section in _sections(message):
            await self._control.load_connection(name, section)
        return OK

    async def unload_conn(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Forget a connection."""
        name = text(message, "name")
        if "name" not in message:
            raise CommandError("unload: missing connection name")
        if not await self._control.unload_connection(name):
            raise CommandError(f"unload: connection '{name}' not found")
        return OK

    # -- credentials

    async def load_cert(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Load a certificate, a raw public key or a revocation list."""
        kind, flag, data = text(message, "type").upper(), text(message, "flag").upper() or "NONE", _blob(message)
        kind, implied = _OLD_TYPES.get(kind, (kind, ""))
        flag = implied or flag
        if not kind:
            raise CommandError("certificate type missing")
        if flag not in _CERTIFICATE_FLAGS:
            raise CommandError(f"invalid certificate flag '{flag}'")
        if not data:
            raise CommandError("certificate data missing")
        if kind == "X509":
            self._control.load_certificate(data, flag)
            if flag == "AA":
                log.info("load-cert: attribute authorities are not used: attribute certificates are not supported")
        elif kind == "X509_CRL":
            self._control.load_crl(data)
        elif kind == "PUBKEY":
            self._control.load_public_key(data)
        elif kind in ("X509_AC", "OCSP_RESPONSE"):
            raise CommandError(f"parsing {kind} certificate failed: not supported")
        else:
            raise CommandError(f"invalid certificate type '{kind}'")
        return OK

    async def load_key(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Load a private key."""
        kind, data = text(message, "type").lower(), _blob(message)
        if not kind:
            raise CommandError("key type missing")
        if kind not in _KEY_TYPES:
            raise CommandError(f"invalid key type: {kind}")
        if not data:
            raise CommandError("key data missing")
        return {"success": "yes", "id": self._control.load_key(kind, data)}

    async def unload_key(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Forget a private key."""
        name = text(message, "id")
        if not name:
            raise CommandError("key id missing")
        if not self._control.unload_key(name):
            raise CommandError("key not found")
        return OK

    async def get_keys(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Ids of the private keys."""
        return {"keys": list(self._control.key_ids())}

    async def load_shared(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Load a preshared key, a postquantum one, or the password of an EAP user."""
        kind, data = text(message, "type").upper(), _blob(message)
        if not kind:
            raise CommandError("shared key type missing")
        if kind not in _SECRETS:
            raise CommandError(f"invalid shared key type: {kind}")
        if not data:
            raise CommandError("shared key data missing")
        name, owners = text(message, "id"), texts(message, "owners")
        self._control.load_shared(name, data, owners, _SECRETS[kind])
        return OK

    async def unload_shared(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Forget a secret; that it is not there is no error."""
        name = text(message, "id")
        if not name:
            raise CommandError("unique identifier missing")
        self._control.unload_shared(name)
        return OK

    async def get_shared(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Names of the secrets."""
        return {"keys": list(self._control.shared_names())}

    async def load_token(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Keys on tokens are not there, as in a charon without a plugin for them."""
        if not text(message, "handle"):
            raise CommandError("keyid missing")
        raise CommandError("loading private key from token failed")

    async def flush_certs(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Forget what was learnt about certificates: fetched CRLs and OCSP responses. What is loaded stays."""
        kind = text(message, "type", "ANY")
        if kind.upper() not in _CERTIFICATE_TYPES:
            raise CommandError(f"invalid certificate type '{kind}'")
        if kind.upper() in ("ANY", "X509_CRL", "OCSP_RESPONSE"):
            self._control.engine.status.clear()
        return OK

    async def clear_creds(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Forget everything that peers are authenticated with, and we."""
        self._control.clear_credentials()
        self._control.engine.status.clear()
        return OK

    # -- authorities, pools, settings

    async def load_authority(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Load trust anchors with their URIs."""
        for name, section in _sections(message):
            self._control.load_authority(name, section)
        return OK

    async def unload_authority(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Forget one."""
        name = text(message, "name")
        if not name:
            raise CommandError("unload: missing authority name")
        if not self._control.unload_authority(name):
            raise CommandError(f"unload: authority '{name}' not found")
        return OK

    async def load_pool(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Load address pools."""
        for name, section in _sections(message):
            self._control.load_pool(name, section)
        return OK

    async def unload_pool(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Forget one that nobody has an address of."""
        name = text(message, "name")
        if "name" not in message:
            raise CommandError("missing pool name to unload")
        if not self._control.unload_pool(name):
            raise CommandError(f"{name} not found")
        return OK

    async def reload_settings(self, client: Client, message: Message) -> Mapping[str, Any]:
        """Read the configuration file again."""
        await self._control.reload_settings()
        return OK


def _told(name: str, handler: Handler) -> Handler:
    """``handler``, whose failures are also in the log."""

    async def run(client: Client, message: Message) -> Mapping[str, Any]:
        try:
            return await handler(client, message)
        except IpsecError as error:
            why = _words(error)
            log.warning("%s: %s", name, why)
            raise CommandError(why) from None

    return run


def _words(error: IpsecError) -> str:
    """Without the place in a file that is none."""
    if isinstance(error, ConfigError) and error.file in (None, "vici"):
        return f"{error.key}: {error.message}" if error.key else error.message
    return str(error)


def _sections(message: Message) -> list[tuple[str, Message]]:
    """What a message loads, by name."""
    found = []
    for name, section in message.items():
        if not isinstance(section, dict):
            raise CommandError(f"invalid section: {name}")
        found.append((name, section))
    return found


def _blob(message: Message) -> bytes:
    data = message.get("data", b"")
    return data if isinstance(data, bytes) else b""
