"""The tunnels that are compared. Each brings up both ends in a Pair and names the processes that carry its packets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path

from bench.e2e.topology import DEVICE, INNER, INNER_NET, LINK_MTU, OUTER, Lab, LabError, Pair, reachable, run, wait_for

ESP_PROPOSAL = "aes128gcm16"
START_TIMEOUT_S = 15.0
#: lets ipsecd take ``crypto_provider = copy``, which protects nothing
COPY_ENVIRONMENT = {"IPSEC_BENCH_NULL_CIPHER": "1"}


class Peer(ABC):
    """One kind of tunnel, up from ``start`` until the lab closes."""

    wire_segments = False

    def __init__(self, name: str, title: str) -> None:
        self.name = name
        self.title = title
        self.gateways: list[subprocess.Popen[str]] = []
        "the processes that carry the packets, end a first; empty for plain veth"
        self.commands: list[str] = []
        "what was started, for the record"

    def start(self, lab: Lab) -> Pair:
        """Bring the tunnel up; returns when a ping has gone through it."""
        pair = lab.pair(self.name, wire_segments=self.wire_segments)
        directory = lab.scratch / self.name
        directory.mkdir()
        self._start(lab, pair, directory)
        for _ in range(5):
            if reachable(pair):
                return pair
        ends = [f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in sorted(directory.glob("*.log"))]
        raise LabError("\n".join([f"{self.title}: up, but no ping goes through", *ends]))

    @abstractmethod
    def _start(self, lab: Lab, pair: Pair, directory: Path) -> None:
        """Start both ends and wait until they say they are ready."""

    @abstractmethod
    def facts(self) -> dict[str, str]:
        """Version, algorithm and settings, for the record."""


class PlainVeth(Peer):
    """No tunnel: what the machine, the kernel and the load generator give at best."""

    def _start(self, lab: Lab, pair: Pair, directory: Path) -> None:
        for end, here, there in zip(pair.ends, (0, 1), (1, 0), strict=True):
            end.run("ip", "route", "add", INNER_NET[there], "via", OUTER[there], "dev", DEVICE, "src", INNER[here])

    def facts(self) -> dict[str, str]:
        return {"mtu": str(LINK_MTU)}


CHARON = "/usr/lib/ipsec/charon"
SWANCTL = "swanctl"
PLUGINS = "/usr/lib/ipsec/plugins"
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
    """Debian's strongSwan with kernel-libipsec at both ends, negotiated with IKEv2 and a pre-shared key."""

    def __init__(self, name: str = "strongswan") -> None:
        super().__init__(name, "Debian strongSwan, kernel-libipsec at both ends")
        self._facts: dict[str, str] = {}

    @staticmethod
    def missing() -> list[str]:
        """Debian packages that have to be installed first."""
        packages = {package for file, package in NEEDED_PLUGINS.items() if not Path(PLUGINS, file).exists()}
        if not Path(CHARON).exists():
            packages.add("strongswan-charon")
        return sorted(packages)

    def _start(self, lab: Lab, pair: Pair, directory: Path) -> None:
        if self.missing():
            raise LabError(f"strongSwan needs: apt-get install {' '.join(self.missing())}")
        for index, end in enumerate(pair.ends):
            home = directory / "ab"[index]
            home.mkdir()
            (home / "strongswan.conf").write_text(STRONGSWAN_CONF.format(directory=home, plugins=PLUGIN_LIST))
            conf = SWANCTL_CONF.format(
                local=OUTER[index],
                remote=OUTER[1 - index],
                local_ts=INNER_NET[index],
                remote_ts=INNER_NET[1 - index],
                esp=ESP_PROPOSAL,
            )
            (home / "swanctl.conf").write_text(conf)
            # two charons need a /run each (ip netns exec has already given the process a mount namespace)
            command = ["sh", "-c", f"mount -t tmpfs none /run && exec {CHARON}"]
            env = {"STRONGSWAN_CONF": str(home / "strongswan.conf")}
            log = directory / f"{'ab'[index]}.out.log"
            process = lab.start(command, log, where=end, env=env)
            self.gateways.append(process)
            self.commands.append(f"{CHARON} with {self._summary()}")
            wait_for((home / "charon.vici").exists, f"{self.title} {end.name}", process, log, timeout_s=START_TIMEOUT_S)
            self._swanctl(home, "--load-all", "--noprompt", "--file", str(home / "swanctl.conf"))
        self._swanctl(directory / "a", "--initiate", "--child", "net", "--timeout", "20")
        self._record(pair, directory / "a")

    def _swanctl(self, home: Path, *args: str) -> str:
        env = {**os.environ, "STRONGSWAN_CONF": str(home / "strongswan.conf"), "SWANCTL_DIR": str(home)}
        return run([SWANCTL, *args, "--uri", f"unix://{home}/charon.vici"], env=env)

    @staticmethod
    def _summary() -> str:
        return f"kernel-libipsec, IKEv2 PSK, esp_proposals {ESP_PROPOSAL}, ESP in UDP 4500"

    def _record(self, pair: Pair, home: Path) -> None:
        sas = self._swanctl(home, "--list-sas")
        child = re.search(r"net: .*", sas)
        cipher = re.search(r"^\s+(?:AES_GCM_16.*)$", self._swanctl(home, "--list-algs"), re.MULTILINE)
        device = re.search(r"mtu (\d+)", pair.a.run("ip", "link", "show", "dev", "ipsec0"))
        self._facts = {
            "version": self._swanctl(home, "--version").strip().splitlines()[0],
            "child_sa": child.group(0).strip() if child else "?",
            "aes_gcm_from": cipher.group(0).strip() if cipher else "?",
            "mtu": device.group(1) if device else "?",
        }
        if "TUNNEL-in-UDP" not in sas:
            raise LabError(f"strongSwan: the CHILD_SA is not in UDP\n{sas}")

    def facts(self) -> dict[str, str]:
        return self._facts


OFFLOADS = ("tun_tso", "tun_uso", "udp_gso", "udp_gro", "coalesce_tcp", "coalesce_udp")
#: end a sends to end b with the first of each, and end b to end a with the second; worth nothing, for they are public
SPIS = (0x10001, 0x10002)
KEYS = ("0x" + "5a" * 20, "0x" + "a5" * 20)

BUSY_POLL = {"workers": "1", "busy_poll_us": "200"}

IPSECD_CONF = """\
ipsecd {{
  device = {device}
  state_dir = {directory}
  install_routes = yes
{settings}
  offload {{
{offload}
  }}
}}
sas {{
  bench {{
    local = {local}
    remote = {remote}
    encap = yes
    esp_proposals = {esp}
    spi_in = {spi_in:#x}
    spi_out = {spi_out:#x}
    key_in = {key_in}
    key_out = {key_out}
    local_ts = {local_ts}
    remote_ts = {remote_ts}
  }}
}}
"""


class Ipsecd(Peer):
    """This project's daemon at both ends, with manual SAs. ``settings`` go into ``ipsecd { }`` as they are."""

    device = "ipsec0"

    def __init__(
        self,
        name: str,
        title: str,
        settings: dict[str, str],
        *,
        off_at_a: tuple[str, ...] = (),
        wire_segments: bool = False,
    ) -> None:
        """``off_at_a`` are offloads that end a is to do without."""
        super().__init__(name, title)
        self.wire_segments = wire_segments
        self._settings = settings
        self._off_at_a = off_at_a
        self._facts: dict[str, str] = {}

    def config(self, index: int, directory: Path) -> str:
        """The configuration file of one end."""
        off = self._off_at_a if index == 0 else ()
        return IPSECD_CONF.format(
            device=self.device,
            directory=directory,
            settings="\n".join(f"  {key} = {value}" for key, value in self._settings.items()),
            offload="\n".join(f"    {key} = {'no' if key in off else 'auto'}" for key in OFFLOADS),
            local=OUTER[index],
            remote=OUTER[1 - index],
            esp=ESP_PROPOSAL,
            spi_in=SPIS[1 - index],
            spi_out=SPIS[index],
            key_in=KEYS[1 - index],
            key_out=KEYS[index],
            local_ts=INNER_NET[index],
            remote_ts=INNER_NET[1 - index],
        )

    def _start(self, lab: Lab, pair: Pair, directory: Path) -> None:
        for index, end in enumerate(pair.ends):
            home = directory / "ab"[index]
            home.mkdir(mode=0o700)
            file = home / "ipsecd.conf"
            file.write_text(self.config(index, home))
            file.chmod(0o600)
            log = directory / f"{'ab'[index]}.log"
            command = [sys.executable, "-m", "ipsec.cli.ipsecd", "--config", str(file)]
            process = lab.start(command, log, where=end, env=COPY_ENVIRONMENT if self._copies else None)
            self.gateways.append(process)
            self.commands.append("ipsecd with\n" + re.sub(r"key_(in|out) = \S+", r"key_\1 = ...", file.read_text()))
            wait_for(
                lambda end=end: f"{self.device}:" in end.run("ip", "link"),  # type: ignore[misc]
                f"{self.title} {end.name}", process, log, timeout_s=START_TIMEOUT_S,
            )  # fmt: skip
        device = re.search(r"mtu (\d+)", pair.a.run("ip", "link", "show", "dev", self.device))
        self._facts = {
            "version": run([sys.executable, "-m", "ipsec", "--version"]).strip(),
            "mtu": device.group(1) if device else "?",
            "log": (directory / "a.log").read_text(errors="replace")[:4000],
        }

    @property
    def _copies(self) -> bool:
        return self._settings.get("crypto_provider") == "copy"

    def facts(self) -> dict[str, str]:
        return self._facts


def make_peer(name: str, settings: dict[str, str]) -> Peer:
    """A peer by its name in PEERS; ``settings`` are for those that run ipsecd."""
    match name:
        case "strongswan":
            return StrongSwan()
        case "plain":
            return PlainVeth("plain", "no tunnel, plain veth")
        case "ipsec":
            return Ipsecd(name, "ipsecd at both ends", settings)
        case "copy":
            return Ipsecd(name, "ipsecd, a copy in place of sealing", settings | {"crypto_provider": "copy"})
        case "single":
            title = "ipsecd, end a neither sends nor takes trains"
            return Ipsecd(name, title, settings, off_at_a=("udp_gso", "udp_gro"))
        case "bare":
            return Ipsecd(name, "ipsecd, end a with every offload off", settings, off_at_a=OFFLOADS)
        case "wire":
            return Ipsecd(name, "ipsecd, the veth cuts trains as a network card does", settings, wire_segments=True)
        case "busy":
            return Ipsecd(name, "ipsecd, one worker that polls 200 us", settings | BUSY_POLL)
    raise LabError(f"no peer is called {name!r}")


PEERS = ("strongswan", "ipsec", "copy", "single", "bare", "wire", "busy", "plain")
