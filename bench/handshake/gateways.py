"""The gateways that are compared: ipsecd and charon with the same connections, in namespaces of their own."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

from bench.e2e.peers import NotInstalled
from bench.e2e.strongswan import PLUGIN_LIST, STRONGSWAN_CONF, StrongSwan
from bench.handshake.initiators import BEHIND, ESP_PROPOSAL, GATEWAY_ID, IKE_PROPOSAL, POOL, SECRET
from bench.topology import INNER, OUTER, Lab, Namespace, Pair, run, wait_for
from ipsec.vici.client import Session
from tools import strongswan

START_TIMEOUT_S = 15.0
#: where initiators send from: every address of it is local to the other end (RFC 2544)
PEERS_NET = "198.18.0.0/15"
#: what forged messages come from: nobody there answers (RFC 5737)
FORGED_NET = "203.0.113.0/24"

GATEWAY_CONF = f"""\
connections {{
  gateway {{
    version = 2
    proposals = {IKE_PROPOSAL}
    pools = pool
    local {{
      auth = psk
      id = {GATEWAY_ID}
    }}
    remote {{
      auth = psk
      id = %any
    }}
    children {{
      net {{
        local_ts = {BEHIND[0]}/16
        remote_ts = dynamic
        esp_proposals = {ESP_PROPOSAL}
      }}
    }}
  }}
}}
pools {{
  pool {{
    addrs = {POOL[0]}-{POOL[1]}
  }}
}}
secrets {{
  ike-any {{
    secret = {SECRET}
  }}
}}
"""

#: one tunnel between two gateways of a kind
SITE_CONF = f"""\
connections {{{{
  site {{{{
    version = 2
    local_addrs = {{local}}
    remote_addrs = {{remote}}
    proposals = {IKE_PROPOSAL}
    local {{{{
      auth = psk
      id = {{local}}
    }}}}
    remote {{{{
      auth = psk
      id = {{remote}}
    }}}}
    children {{{{
      net {{{{
        local_ts = {{inner}}/32
        remote_ts = {{far}}/32
        esp_proposals = {ESP_PROPOSAL}
      }}}}
    }}}}
  }}}}
}}}}
secrets {{{{
  ike-any {{{{
    secret = {SECRET}
  }}}}
}}}}
"""

# a list of IKE_SAs that is searched from its start would be no fair match at thousands of them
CHARON_TABLES = "charon {\n  ikesa_table_size = 16384\n  ikesa_table_segments = 64\n"


def site_conf(index: int) -> str:
    """The configuration of one end of a single tunnel."""
    return SITE_CONF.format(local=OUTER[index], remote=OUTER[1 - index], inner=INNER[index], far=INNER[1 - index])


def make_pair(lab: Lab, name: str) -> Pair:
    """Two namespaces joined by a veth; end b answers for all of PEERS_NET."""
    pair = lab.pair(f"ike-{name}")
    pair.a.run("ip", "route", "add", PEERS_NET, "via", OUTER[1])
    pair.a.run("ip", "route", "add", FORGED_NET, "via", OUTER[1])
    pair.b.run("ip", "route", "add", "local", PEERS_NET, "dev", "lo")
    return pair


class Gateway(ABC):
    """A daemon in a namespace. ``start`` returns when it listens."""

    def __init__(self, lab: Lab, where: Namespace, home: Path) -> None:
        self.lab = lab
        self.where = where
        self.home = home
        self.log = home / "log"
        self.socket = home / "charon.vici"
        home.mkdir(mode=0o700)
        self.process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.process is not None
        return self.process.pid

    def stop(self) -> None:
        """End it."""
        assert self.process is not None
        self.lab.stop(self.process)

    def kill(self) -> None:
        """End it at once: nobody is there who could acknowledge that thousands of IKE_SAs are closed."""
        assert self.process is not None
        self.process.kill()
        self.lab.stop(self.process)

    @abstractmethod
    def start(self, conf: str) -> None:
        """Begin with this configuration."""

    def bring_up(self) -> None:
        """Give the command that makes the tunnel; return as soon as it is given."""
        asyncio.run(self._vici("initiate", {"child": "net", "timeout": "-1"}))

    def take_down(self) -> None:
        """Close the tunnel."""
        asyncio.run(self._vici("terminate", {"ike": "site", "timeout": "5000"}))

    def list_sas(self) -> tuple[float, int]:
        """Seconds that the answer to list-sas takes, and how many IKE_SAs are in it."""
        begun = time.monotonic()
        count = asyncio.run(self._list())
        return time.monotonic() - begun, count

    async def _list(self) -> int:
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        async with Session(reader, writer) as session:
            return sum([1 async for _ in session.stream("list-sas", "list-sa")])

    async def _vici(self, command: str, message: dict[str, str]) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        async with Session(reader, writer) as session:
            await session.request(command, message)


class OurGateway(Gateway):
    """ipsecd. ``module`` may be ``bench.handshake.ticking``."""

    def __init__(self, lab: Lab, where: Namespace, home: Path, module: str = "ipsec.cli.ipsecd") -> None:
        super().__init__(lab, where, home)
        self._file = home / "ipsecd.conf"
        self._module = module

    def _write(self, conf: str) -> None:
        self._file.touch(mode=0o600)
        self._file.write_text(
            f"ipsecd {{\n  device = ipsec0\n  state_dir = {self.home}\n  vici_socket = {self.socket}\n}}\n{conf}"
        )

    def start(self, conf: str) -> None:
        """See Gateway."""
        self._write(conf)
        command = [sys.executable, "-m", self._module, "--config", str(self._file)]
        process = self.process = self.lab.start(command, self.log, where=self.where)
        wait_for(
            lambda: "ready" in self.log.read_text(errors="replace"),
            f"ipsecd {self.where.name}",
            process,
            self.log,
            timeout_s=START_TIMEOUT_S,
        )


class CharonGateway(Gateway):
    """Debian's charon with kernel-libipsec."""

    def start(self, conf: str) -> None:
        """See Gateway."""
        missing = StrongSwan.missing()
        if missing:
            raise NotInstalled("strongSwan", *missing)
        settings = STRONGSWAN_CONF.format(directory=self.home, plugins=PLUGIN_LIST).replace("flush_line = yes", "")
        (self.home / "strongswan.conf").write_text(settings.replace("charon {\n", CHARON_TABLES, 1))
        (self.home / "swanctl.conf").write_text(conf)
        env = {"STRONGSWAN_CONF": str(self.home / "strongswan.conf")}
        process = self.process = self.lab.start(strongswan.start(), self.log, where=self.where, env=env)
        wait_for(self.socket.exists, f"charon {self.where.name}", process, self.log, timeout_s=START_TIMEOUT_S)
        env = {**os.environ, **env, "SWANCTL_DIR": str(self.home)}
        load = ("swanctl", "--load-all", "--noprompt", "--file", str(self.home / "swanctl.conf"))
        run(strongswan.command(*load, "--uri", f"unix://{self.socket}"), env=env)
