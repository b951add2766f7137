"""What ``--version`` prints."""

from __future__ import annotations

import platform
from importlib import metadata

from ipsec.errors import BackendError


def version() -> str:
    """The version of the installed package, or that it is not installed."""
    try:
        return metadata.version("ipsec")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def version_text() -> str:
    """Version, what optional libraries are there, crypto providers found, and the one that serves each suite."""
    # ipsecctl asks for the version alone, and has no need for the data path
    from ipsec.backend.core import compiled_core
    from ipsec.daemon.optional import key_exchange_found, tls_found

    lines = [f"ipsec {version()}, Python {platform.python_version()}, {platform.machine()}"]
    there, what = key_exchange_found()
    lines.append(f"postquantum key exchange: {what}" if there else f"no postquantum key exchange: {what}")
    there, what = tls_found()
    lines.append(f"EAP-TLS: {what}" if there else f"no EAP-TLS: {what}")
    try:
        used: dict[str, str] = compiled_core().Engine().providers()
    except BackendError as error:
        return "\n".join([*lines, f"no data path: {error}"])
    lines.append("providers: " + ", ".join(sorted(set(used.values()))))
    width = max(map(len, used), default=0)
    lines += [f"  {suite:{width}}  {provider}" for suite, provider in used.items()]
    return "\n".join(lines)
