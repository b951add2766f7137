"""Debian's strongSwan with kernel-libipsec: what this project is to replace."""

from __future__ import annotations

import os
import re
from pathlib import Path

from bench.e2e.peers import GCM, START_TIMEOUT_S, NotInstalled, Peer
from bench.topology import Lab, LabError, Link, Pair, run, wait_for
from tools import strongswan

NEEDED_PLUGINS = {
    "libstrongswan-kernel-libipsec.so": "libcharon-extra-plugins",
    "libstrongswan-openssl.so": "libstrongswan-standard-plugins",
    "libstrongswan-vici.so": "strongswan-swanctl",
    "libstrongswan-aesni.so": "libstrongswan-standard-plugins",
}

# What the plugin's documentation asks for: kernel-libipsec loaded, and before kernel-netlink. The list is written out
# because Debian's default also loads forecast, whose packet sockets see every packet of the tunnel and cost strongSwan
# half of its throughput on two cores. aesni comes before openssl as it does by default.
PLUGIN_LIST = (
    "random nonce aesni aes sha1 sha2 hmac kdf curve25519 openssl x509 pubkey pem "
    "kernel-libipsec kernel-netlink socket-default vici"
)
STRONGSWAN_CONF = """\
charon {{
  load_modular = no
  load = {plugins}
  plugins {{
    vici {{
      socket = unix://{directory}/charon.vici
    }}
  }}
  filelog {{
    main {{
      path = {directory}.log
      default = 1
      flush_line = yes
    }}
  }}
}}
"""

SWANCTL_CONF = """\
connections {{
  bench {{
    version = 2
    local_addrs = {local}
    remote_addrs = {remote}
    proposals = aes128gcm16-prfsha256-x25519
    rekey_time = 0
    local {{
      auth = psk
      id = {local}
    }}
    remote {{
      auth = psk
      id = {remote}
    }}
    children {{
      net {{
        local_ts = {local_ts}
        remote_ts = {remote_ts}
        esp_proposals = {esp}
        rekey_time = 0
      }}
    }}
  }}
}}
secrets {{
  ike-bench {{
    id-1 = {local}
    id-2 = {remote}
    secret = only for this benchmark
  }}
}}
"""


class StrongSwan(Peer):
    """kernel-libipsec at both ends, negotiated with IKEv2 and a pre-shared key."""

    def __init__(self, name: str = "strongswan", link: Link | None = None) -> None:
        super().__init__(name, "strongSwan, kernel-libipsec", GCM, link)

    @staticmethod
    def missing() -> list[str]:
        """Debian packages that have to be installed first."""
        plugins = strongswan.PLUGIN_FOLDER
        packages = {package for file, package in NEEDED_PLUGINS.items() if not strongswan.exists(f"{plugins}/{file}")}
        if not strongswan.exists(strongswan.daemon()):
            packages.add("strongswan-charon")
        return sorted(packages)

    def _start(self, lab: Lab, pair: Pair, directory: Path) -> None:
        if self.missing():
            raise NotInstalled(self.title, *self.missing())
        for index, end in enumerate(pair.ends):
            home = directory / "ab"[index]
            home.mkdir()
            (home / "strongswan.conf").write_text(STRONGSWAN_CONF.format(directory=home, plugins=PLUGIN_LIST))
            conf = SWANCTL_CONF.format(
                local=pair.link.outer[index],
                remote=pair.link.outer[1 - index],
                local_ts=pair.link.inner_net[index],
                remote_ts=pair.link.inner_net[1 - index],
                esp=GCM,
            )
            (home / "swanctl.conf").write_text(conf)
            env = {"STRONGSWAN_CONF": str(home / "strongswan.conf")}
            log = directory / f"{'ab'[index]}.out.log"
            process = lab.start(strongswan.start(), log, where=end, env=env)
            self.gateways.append(process)
            self.commands.append(f"{strongswan.daemon()} with {self._summary()}")
            wait_for((home / "charon.vici").exists, f"{self.title} {end.name}", process, log, timeout_s=START_TIMEOUT_S)
            self._swanctl(home, "--load-all", "--noprompt", "--file", str(home / "swanctl.conf"))
        self._swanctl(directory / "a", "--initiate", "--child", "net", "--timeout", "20")
        self._record(pair, directory / "a")

    def _swanctl(self, home: Path, *args: str) -> str:
        env = {**os.environ, "STRONGSWAN_CONF": str(home / "strongswan.conf"), "SWANCTL_DIR": str(home)}
        return run(strongswan.command("swanctl", *args, "--uri", f"unix://{home}/charon.vici"), env=env)

    @staticmethod
    def _summary() -> str:
        return f"kernel-libipsec, IKEv2 PSK, esp_proposals {GCM}, ESP in UDP 4500"

    def _record(self, pair: Pair, home: Path) -> None:
        sas = self._swanctl(home, "--list-sas")
        child = re.search(r"net: .*", sas)
        cipher = re.search(r"^\s+(?:AES_GCM_16.*)$", self._swanctl(home, "--list-algs"), re.MULTILINE)
        device = re.search(r"mtu (\d+)", pair.a.run("ip", "link", "show", "dev", "ipsec0"))
        self.facts = {
            "version": self._swanctl(home, "--version").strip().splitlines()[0],
            "child_sa": child.group(0).strip() if child else "?",
            "aes_gcm_from": cipher.group(0).strip() if cipher else "?",
            "mtu": device.group(1) if device else "?",
        }
        if "TUNNEL-in-UDP" not in sas:
            raise LabError(f"strongSwan: the CHILD_SA is not in UDP\n{sas}")
