"""strongSwan as one end: charon with kernel-libipsec, told what to do by swanctl. Which one: tools/strongswan.py."""

from __future__ import annotations

import re
import shutil
from typing import Any

from tests.commands import run
from tests.interop.gateway import Gateway
from tests.interop.lab import eventually, render
from tools import strongswan

#: what has to be there, and the Debian package it comes from
NEEDED = {
    strongswan.daemon(): "strongswan-charon",
    f"{strongswan.PLUGIN_FOLDER}/libstrongswan-kernel-libipsec.so": "libcharon-extra-plugins",
    f"{strongswan.PLUGIN_FOLDER}/libstrongswan-eap-mschapv2.so": "libcharon-extauth-plugins",
    f"{strongswan.PLUGIN_FOLDER}/libstrongswan-openssl.so": "libstrongswan-standard-plugins",
    f"{strongswan.PLUGIN_FOLDER}/libstrongswan-chapoly.so": "libstrongswan-extra-plugins",
    f"{strongswan.PLUGIN_FOLDER}/libstrongswan-vici.so": "strongswan-swanctl",
    "/usr/sbin/swanctl": "strongswan-swanctl",
}
NEEDED_COMMANDS = {"tshark": "tshark", "ethtool": "ethtool", "ping": "iputils-ping"}
# kernel-libipsec comes before kernel-netlink, as its documentation asks. forecast and bypass-lan, which Debian loads by
# default, would see and change the routes of the test.
PLUGINS = (
    "random nonce aesni aes sha1 sha2 hmac md5 xcbc cmac ctr ccm gcm chapoly kdf curve25519 openssl mgf1 x509 pubkey "
    "pem pkcs1 pkcs8 revocation constraints counters kernel-libipsec kernel-netlink socket-default resolve vici "
    "eap-identity eap-md5 eap-gtc eap-mschapv2 eap-tls xauth-generic"
)


def missing_packages() -> list[str]:
    """Debian packages without which there is no charon, no swanctl and no capture to look into."""
    packages = {package for path, package in NEEDED.items() if not strongswan.exists(path)}
    packages |= {package for command, package in NEEDED_COMMANDS.items() if not shutil.which(command)}
    return sorted(packages)


def swanctl(socket: str, *args: str, check: bool = False, **environment: str) -> str:
    """Output of a swanctl command, whichever daemon listens."""
    pairs = [f"{key}={value}" for key, value in environment.items()]
    command = strongswan.command("env", *pairs, "swanctl", *args, "--uri", f"unix://{socket}")
    done = run(*command, check=check)
    return done.stdout + done.stderr


class CharonGateway(Gateway):
    """One charon."""

    kind = "charon"
    plugins = PLUGINS

    @property
    def vici(self) -> str:
        """Where swanctl finds it."""
        return f"unix://{self.home}/charon.vici"

    def _write(self) -> None:
        (self.home / "swanctl.conf").write_text(render(self.side.swanctl))
        settings = dict(self.side.settings)
        charon: dict[str, Any] = {
            "load_modular": "no",
            "load": self.plugins,
            "plugins": {
                "vici": {"socket": self.vici},
                "resolve": {"file": f"{self.home}/resolv.conf", "resolvconf": {"path": "/nonexistent"}},
                **settings.pop("plugins", {}),
            },
            "filelog": {"main": {"path": self.log_file, "default": 1, "cfg": 2, "flush_line": "yes", "append": "yes"}},
            **settings,
        }
        (self.home / "strongswan.conf").write_text(render({"charon": charon}))

    @property
    def environment(self) -> dict[str, str]:
        return {"STRONGSWAN_CONF": str(self.home / "strongswan.conf"), "SWANCTL_DIR": str(self.home)}

    def _launch(self) -> None:
        socket = self.home / "charon.vici"
        socket.unlink(missing_ok=True)
        self._spawn(*strongswan.start())
        eventually(lambda: self._alive() and socket.exists(), "charon listens")
        self.load()

    def load(self) -> None:
        """Hand the configuration to charon."""
        self.swanctl("--load-all", "--noprompt", "--file", str(self.home / "swanctl.conf"))

    reload = load

    def swanctl(self, *args: str, check: bool = True) -> str:
        """Output of a swanctl command."""
        return swanctl(f"{self.home}/charon.vici", *args, check=check, **self.environment)

    def initiate(self, child: str = "net", *, timeout: float = 8.0) -> bool:
        said = self.swanctl("--initiate", "--child", child, "--timeout", str(int(timeout)), check=False)
        return "initiate completed successfully" in said

    def rekey(self, what: str) -> None:
        if what == "child":
            self.swanctl("--rekey", "--child", "net")
        else:
            self.swanctl("--rekey", "--ike", "gw", *(["--reauth"] if what == "reauth" else []))

    def terminate(self, what: str) -> None:
        name = ("--child", "net") if what == "child" else ("--ike", "gw")
        self.swanctl("--terminate", *name, "--timeout", "5")

    def sas(self) -> list[dict[str, Any]]:
        return parse_sas(self.swanctl("--list-sas", "--raw"))


def parse_sas(text: str) -> list[dict[str, Any]]:
    """The IKE_SAs of ``swanctl --list-sas --raw``, with their connection as ``name``."""
    sas = []
    for line in text.splitlines():
        if line.startswith("list-sa event"):
            (name, values), *_ = parse_raw(line.removeprefix("list-sa event ")).items()
            sas.append({"name": name, **values})
    return sas


def parse_raw(text: str) -> dict[str, Any]:
    """What ``swanctl --raw`` prints, ``{name {key=value list=[a b] section {...}}}``, as nested dicts."""
    # keys are lower case, which tells them from the attributes of a distinguished name
    key = r"[a-z][a-z0-9-]*="
    tokens = re.findall(
        rf"[{{}}]|{key}\[[^\]]*\]|{key}[^{{}}]*?(?=\s{key}|\s[^\s{{}}=]+\s*\{{|\s*[{{}}])|[^\s{{}}]+", text
    )
    root: dict[str, Any] = {}
    stack, name = [root], ""
    for token in tokens[1:-1]:
        if token == "{":
            stack[-1][name] = {}
            stack.append(stack[-1][name])
        elif token == "}":
            stack.pop()
        elif "=" in token:
            key, value = token.split("=", 1)
            stack[-1][key] = value[1:-1].split() if value.startswith("[") else value
        else:
            name = token
    return root
