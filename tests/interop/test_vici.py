"""Debian's swanctl and the ``vici`` package of PyPI drive ipsecd as they drive charon.

Each does the same with a charon and with an ipsecd in the same place, with another charon as the peer; what they print
and get has to have the same form: the same names, the same strings, the same order, other numbers.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.commands import run
from tests.interop.cases import make_sides, merge
from tests.interop.certificates import name_of
from tests.interop.charon import CharonGateway
from tests.interop.gateway import Gateway, Side
from tests.interop.ipsecd import ROOT, IpsecdGateway
from tests.interop.lab import OUTER, Lab, eventually, render
from tools import strongswan

vici = pytest.importorskip("vici")
pytestmark = [pytest.mark.interop, pytest.mark.e2e]

FILES = ("x509/a-rsa.pem", "private/a-rsa.pem", "x509ca/root.pem", "x509crl/root.pem")
#: events that come by themselves
EVENTS = ("ike-updown", "ike-rekey", "child-updown", "child-rekey")
Values = dict[str, Any]


def end_a(side: Side) -> Side:
    """A's configuration with one of everything."""
    certs: Values = {
        "version": 2,
        "local_addrs": "%any",
        "remote_addrs": ("192.0.2.77", "192.0.2.78"),
        "dpd_delay": "30s",
        "reauth_time": "3h",
        "unique": "replace",
        "pools": "roadwarriors",
        "local": {"auth": "pubkey", "certs": "a-rsa.pem"},
        "remote": {"auth": "pubkey", "id": f"*@{name_of(1)}", "cacerts": "root.pem", "revocation": "strict"},
        "children": {
            "web": {
                "local_ts": "10.1.0.0/16[tcp/443]",
                "remote_ts": ("10.9.0.0/16", "10.10.0.0-10.10.0.9[udp]"),
                "mode": "transport",
                "dpd_action": "restart",
                "close_action": "trap",
                "rekey_bytes": "1g",
                "rekey_packets": "1000000",
            },
            "dynamic": {},
        },
    }
    shunt = {
        "version": 2,
        "remote_addrs": "127.0.0.1",
        "local": {"auth": "psk", "id": "shunt"},
        "remote": {"auth": "psk", "id": "nobody"},
        "children": {"lan": {"local_ts": "10.1.0.0/16", "remote_ts": "10.7.0.0/16", "mode": "drop"}},
    }
    pools = {"roadwarriors": {"addrs": "10.3.0.0/24", "dns": "10.3.0.1"}}
    authorities = {"interop": {"cacert": "root.pem", "crl_uris": "http://127.0.0.1:1/root.crl"}}
    added = {"connections": {"certs": certs, "shunt": shunt}, "pools": pools, "authorities": authorities}
    return Side(merge(side.swanctl, added), side.settings, FILES)


class Driven(CharonGateway):
    """A charon that has been told nothing yet."""

    def load(self) -> None:
        pass


class DrivenIpsecd(IpsecdGateway):
    """An ipsecd that has been told nothing yet; swanctl has the configuration."""

    def _write(self) -> None:
        (self.home / "swanctl.conf").write_text(render(self.side.swanctl))
        (self.home / "strongswan.conf").write_text("")
        daemon = {
            "state_dir": self.home / "state",
            "offload": {"udp_gso": "no"},
            "vici_socket": f"unix://{self.home}/charon.vici",
        }
        (self.home / "daemon").mkdir()
        (self.home / "daemon" / "swanctl.conf").write_text(render({"ipsecd": daemon}))

    @property
    def environment(self) -> dict[str, str]:
        return {"SWANCTL_DIR": str(self.home / "daemon"), "PYTHONPATH": str(ROOT)}

    def _launch(self) -> None:
        self._spawn(sys.executable, "-m", "ipsec", "--config", str(self.home / "daemon" / "swanctl.conf"))
        eventually(lambda: self._alive() and "ready" in self.log(), f"ipsecd is ready:\n{self.log()}", timeout=30)


def swanctl(home: Path, *args: str) -> str:
    """Output of swanctl, and how it ended."""
    pairs = [f"STRONGSWAN_CONF={home}/strongswan.conf", f"SWANCTL_DIR={home}"]
    command = strongswan.command("env", *pairs, "swanctl", *args, "--uri", f"unix://{home}/charon.vici")
    done = run(*command, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "opening directory" not in line]
    return "\n".join([*lines, f"-> {done.returncode}"]).replace(str(home), "HOME")


def form(text: str) -> str:
    """Text without its numbers."""
    text = re.sub(r"\b[0-9a-f]{16}(?=\b|_)", "IKESPI", text)
    text = re.sub(r"\b[0-9a-f]{8}\b", "SPI", text)
    text = re.sub(r"(?<![\w.])\d+(?![\w./])|\d+(?=s\b)", "N", text)
    return re.sub(r" +N", " N", text)


class Transcript:
    """What one daemon's clients said and heard."""

    def __init__(self, end: Gateway) -> None:
        self.home = end.home
        self.end = end
        self.said: dict[str, str] = {}
        self.heard: list[tuple[str, Any]] = []
        self.got: dict[str, Any] = {}

    def do(self, name: str, *args: str) -> str:
        """Run swanctl and remember what it printed as ``name``."""
        said = self.said[name] = swanctl(self.home, *args)
        return said

    @contextmanager
    def session(self) -> Iterator[Any]:
        """A session of the PyPI client."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10)
            sock.connect(f"{self.home}/charon.vici")
            yield vici.Session(sock)


def drive(said: Transcript) -> None:
    """Everything swanctl can do, in an order that makes each command show something."""
    conf = f"{said.home}/swanctl.conf"
    load = ("--load-all", "--noprompt", "--file", conf)
    assert "successfully loaded 3 connections" in said.do("load", *load)
    said.do("load again", *load)
    for what in ("conns", "certs", "authorities", "pols", "pools"):
        said.do(f"list {what}", f"--list-{what}")
    listener = threading.Thread(target=_listen, args=(said,))
    listener.start()
    eventually(lambda: said.got.get("listening"), "the listener is registered")
    monitor = Following(said.home, "--monitor-sa")
    assert "completed successfully" in said.do("initiate", "--initiate", "--child", "net", "--timeout", "10")
    for form_of in ("", "--raw", "--pretty"):
        said.do(f"sas {form_of}", "--list-sas", *([form_of] if form_of else []))
    said.do("one", "--list-sas", "--ike", "gw")
    said.do("none", "--list-sas", "--ike", "other")
    assert "completed" in said.do("rekey child", "--rekey", "--child", "net")
    _wait_for(said, "child-rekey")
    assert "completed" in said.do("rekey ike", "--rekey", "--ike", "gw")
    _wait_for(said, "ike-rekey")
    said.do("counters", "--counters", "--name", "gw")
    said.do("all counters", "--counters")
    said.do("install", "--install", "--child", "lan")
    said.do("install trap", "--install", "--child", "net")
    said.do("policies", "--list-pols")
    said.do("drops", "--list-pols", "--drop")
    said.do("uninstall", "--uninstall", "--child", "lan")
    said.do("uninstall trap", "--uninstall", "--child", "net")
    said.do("uninstall again", "--uninstall", "--child", "lan")
    said.do("leases", "--list-pools", "--leases")
    said.do("stats", "--stats")
    said.do("algorithms", "--list-algs")
    said.do("flush", "--flush-certs")
    said.do("reload", "--reload-settings")
    said.do("wrong initiate", "--initiate", "--child", "nope")
    said.do("wrong ike", "--initiate", "--ike", "nope")
    said.do("wrong rekey", "--rekey", "--ike", "nope")
    said.do("wrong terminate", "--terminate", "--ike-id", "4711")
    said.do("wrong install", "--install", "--child", "nope")
    said.do("wrong redirect", "--redirect", "--peer-ip", "192.0.2.99", "--gateway", "192.0.2.3")
    said.do("unreachable", "--initiate", "--child", "web", "--timeout", "1")
    with said.session() as session:
        _with_python(session, said.got)
    said.do("terminate child", "--terminate", "--child", "net", "--timeout", "5")
    said.do("terminate", "--terminate", "--ike", "gw", "--timeout", "5")
    _wait_for(said, "ike-updown", count=2)
    said.said["monitor"] = monitor.stop()
    said.got["stop"] = True
    listener.join(15)
    with said.session() as session:
        _change_with_python(session, said.got)
    said.do("load cleared", *load, "--clear")
    (said.home / "swanctl.conf").write_text("")
    said.do("unload", *load)


def _listen(said: Transcript) -> None:
    with said.session() as session:
        for name, message in session.listen([*EVENTS, "log"], timeout=0.1):
            said.got["listening"] = True
            if name is not None and name != b"log":
                said.heard.append((name.decode(), message))
            elif name is not None:
                said.got.setdefault("log", message)
            if said.got.get("stop"):
                return


def _wait_for(said: Transcript, event: str, *, count: int = 1) -> None:
    eventually(lambda: sum(name == event for name, _ in said.heard) >= count, f"{event} comes")


class Following:
    """A command of swanctl that goes on for as long as something happens."""

    def __init__(self, home: Path, command: str) -> None:
        pairs = [f"STRONGSWAN_CONF={home}/strongswan.conf", f"SWANCTL_DIR={home}", "stdbuf", "-oL"]
        arguments = strongswan.command("env", *pairs, "swanctl", command, "--uri", f"unix://{home}/charon.vici")
        self._process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        time.sleep(0.3)

    def stop(self) -> str:
        """What it printed."""
        time.sleep(0.2)
        self._process.terminate()
        return self._process.communicate(timeout=5)[0]


def _with_python(session: Any, got: Values) -> None:
    """What the PyPI client gets."""
    got["version"] = session.version()
    got["stats"] = session.stats()
    got["sas"] = list(session.list_sas({"ike": "gw"}))
    got["conns"] = list(session.list_conns())
    got["get_conns"] = session.get_conns()
    got["pools"] = session.get_pools({"leases": "yes"})
    got["certs"] = list(session.list_certs())
    got["authorities"] = [session.get_authorities(), *session.list_authorities()]
    got["keys"] = [session.get_keys(), session.get_shared()]
    got["counters"] = session.get_counters({"name": "gw"})
    got["missing"] = [
        _error(lambda: list(session.initiate({}))),
        _error(lambda: list(session.terminate({}))),
        _error(lambda: session.rekey({})),
        _error(lambda: session.install({})),
        _error(lambda: session.redirect({"gateway": "192.0.2.3"})),
        _error(lambda: session.redirect({"ike": "gw"})),
        _error(lambda: session.unload_conn({"name": "nope"})),
        _error(lambda: session.unload_conn({})),
        _error(lambda: session.unload_pool({"name": "nope"})),
        _error(lambda: session.unload_authority({"name": "nope"})),
        _error(lambda: session.unload_key({"id": "00"})),
        _error(lambda: session.load_key({"type": "any"})),
        _error(lambda: session.load_shared({"type": "IKE"})),
        _error(lambda: session.load_cert({"type": "X509", "flag": "ODD"})),
    ]


def _error(action: Callable[[], object]) -> str:
    try:
        action()
    except vici.exception.CommandException as error:
        return str(error)
    return ""


def _change_with_python(session: Any, got: Values) -> None:
    """Load, change and unload by name."""
    child = {"local_ts": ["10.1.0.0/16"], "remote_ts": ["10.2.0.0/16"], "start_action": "trap"}
    connection = {
        "version": "2",
        "remote_addrs": [OUTER[4][1]],
        "local": {"auth": "psk", "id": "a"},
        "remote": {"auth": "psk", "id": "b"},
        "children": {"one": child},
    }
    steps = []
    for children in ({"one": child}, {"one": child, "two": child | {"remote_ts": ["10.8.0.0/16"]}}, {}):
        session.load_conn({"python": connection | {"children": children}})
        steps.append(sorted(name for policy in session.list_policies({"trap": "yes"}) for name in policy))
    got["steps"] = steps
    session.load_shared({"id": "x", "type": "IKE", "data": "a long enough secret", "owners": ["a", "b"]})
    got["shared"] = sorted(session.get_shared()["keys"])
    session.unload_shared({"id": "x"})
    session.unload_conn({"name": "python"})
    session.load_pool({"more": {"addrs": "10.5.0.0/24", "dns": ["10.5.0.1"]}})
    got["more"] = session.get_pools()["more"]
    session.unload_pool({"name": "more"})
    got["odd"] = _error(lambda: session.load_conn({"odd": {"nonsense": "yes"}}))


@pytest.fixture(scope="module")
def transcripts(lab: Lab, credentials: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Transcript]:
    """The same commands, given to both."""
    folder = tmp_path_factory.mktemp("vici")
    sides = make_sides()
    found = {}
    for kind, make in (("charon", Driven), ("ipsecd", DrivenIpsecd)):
        lab.reset(one_address=True)
        (folder / kind).mkdir()
        peer = CharonGateway(lab.b, 1, folder / kind / "b", sides[1], credentials)
        end = make(lab.a, 0, folder / kind / "a", end_a(sides[0]), credentials)
        try:
            peer.start()
            end.start()
            found[kind] = Transcript(end)
            drive(found[kind])
            end.stop()
        except BaseException as error:
            error.add_note(f"--- {kind}\n{end.log()[-5000:]}")
            raise
        finally:
            end.kill()
            peer.kill()
    return found


EXACT = (
    *("load again", "list conns", "list authorities", "list pols", "list pools", "none", "install", "install trap"),
    *("drops", "uninstall", "uninstall trap", "uninstall again", "leases", "flush", "reload"),
    *("wrong initiate", "wrong ike", "wrong rekey", "wrong terminate", "wrong install", "wrong redirect"),
    *("rekey child", "rekey ike", "load", "load cleared", "unload", "counters"),
)


@pytest.mark.parametrize("name", EXACT)
def test_swanctl_prints_the_same(transcripts: dict[str, Transcript], name: str) -> None:
    # strongSwan 5 calls the address of the network the base of a pool, 6 and we the first that somebody can get
    ours, theirs = (transcripts[kind].said[name].replace(" 10.3.0.0 ", " 10.3.0.1 ") for kind in ("ipsecd", "charon"))
    assert ours == theirs


@pytest.mark.parametrize("name", ["sas ", "sas --raw", "sas --pretty", "one", "all counters", "monitor", "list certs",
                                  "policies"])  # fmt: skip
def test_swanctl_prints_the_same_but_for_numbers(transcripts: dict[str, Transcript], name: str) -> None:
    def shape(text: str) -> str:
        # what is being done besides depends on the moment
        text = re.sub(r"(?m)^ +(queued|active|passive): .*\n", "", text)
        # we say that we pretend to be behind a NAT, kernel-libipsec does not
        return re.sub(r"(?m)^ *nat-fake = yes\n| nat-fake=yes", "", re.sub(r"\bnet-\d+", "net-N", form(text)))

    assert shape(transcripts["ipsecd"].said[name]) == shape(transcripts["charon"].said[name])


@pytest.mark.parametrize("name", ["initiate", "terminate", "terminate child", "unreachable"])
def test_swanctl_ends_the_same(transcripts: dict[str, Transcript], name: str) -> None:
    """Between beginning and end stands the log, each in its own words."""
    ends = [transcripts[kind].said[name].splitlines()[-2:] for kind in ("charon", "ipsecd")]
    assert ends[0] == ends[1]


def test_stats_and_algorithms(transcripts: dict[str, Transcript]) -> None:
    labels = [re.findall(r"(?m)^([a-zA-Z_ ]+):", transcripts[kind].said["stats"]) for kind in ("charon", "ipsecd")]
    assert labels[0] == labels[1]
    known = set(re.findall(r"(?m)^  (\S+)\[", transcripts["charon"].said["algorithms"]))
    ours = set(re.findall(r"(?m)^  (\S+)\[", transcripts["ipsecd"].said["algorithms"]))
    # ML-KEM is in strongSwan since 6.0, and there only with a libcrypto that has it
    assert {name for name in ours if not name.startswith("ML_KEM")} <= known
    kinds = [set(re.findall(r"(?m)^(\S+):$", transcripts[kind].said["algorithms"])) for kind in ("charon", "ipsecd")]
    # strongSwan 5 calls it dh
    assert kinds[1] - kinds[0] in (set(), {"ke"})


def shape_of(value: Any, key: str = "") -> Any:
    """Names and kinds of values; what is a name of something made up at run time is left out."""
    if isinstance(value, dict):
        return {re.sub(r"-\d+$", "-N", str(name)): shape_of(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [shape_of(item) for item in value]
    # what stands for itself in both
    free = "established" in key or re.search(r"time$|uniqueid|spi|bytes|packets|reqid|use-|base", key)
    return "" if free else value


@pytest.mark.parametrize("name", ["sas", "conns", "get_conns", "pools", "certs", "authorities", "keys", "missing",
                                  "steps", "shared", "more"])  # fmt: skip
def test_python_gets_the_same(transcripts: dict[str, Transcript], name: str) -> None:
    got = [shape_of(transcripts[kind].got[name]) for kind in ("charon", "ipsecd")]
    if name == "sas":
        for sa in got[1]:
            for fields in sa.values():
                fields.pop("nat-fake")
    if name == "conns":
        for theirs, ours in zip(*got, strict=True):
            _compare_what_is_new(*theirs.values(), *ours.values())
    assert got[1] == got[0]


def _compare_what_is_new(theirs: Values, ours: Values) -> None:
    """Take from both what strongSwan 6.1 tells of a connection and older ones do not, and what is ours alone."""
    assert {ours["local_port"], ours["remote_port"]} == {b"500"}
    assert all(child.pop("ipsecd-start-action") for child in ours["children"].values())
    sections = [(theirs, ours), *((child, ours["children"][name]) for name, child in theirs["children"].items())]
    for one, other in sections:
        for key in ("local_port", "remote_port", "proposals", "esp_proposals", "ah_proposals"):
            told, own = one.pop(key, None), other.pop(key, None)
            # what default stands for is not the same in both
            assert told in (None, own) or told["0"]["encr"][-1] == b"3DES_CBC" or b"KE_NONE" in told["0"]["ke"]


@pytest.mark.parametrize("name", ["version", "stats", "counters"])
def test_python_gets_the_same_names(transcripts: dict[str, Transcript], name: str) -> None:
    def names(value: Any) -> Any:
        return {key: names(item) for key, item in value.items()} if isinstance(value, dict) else None

    assert names(transcripts["ipsecd"].got[name]) == names(transcripts["charon"].got[name])


def test_unknown_keys_are_errors_for_both(transcripts: dict[str, Transcript]) -> None:
    for transcript in transcripts.values():
        assert "nonsense" in transcript.got["odd"]


def test_log_events_have_the_same_fields(transcripts: dict[str, Transcript]) -> None:
    for transcript in transcripts.values():
        assert {"group", "level", "msg"} <= set(transcript.got["log"])


@pytest.mark.parametrize("event", EVENTS)
def test_events_have_the_same_fields(transcripts: dict[str, Transcript], event: str) -> None:
    def fields(value: Any) -> Any:
        if not isinstance(value, dict):
            return None
        # tasks come and go; see above for nat-fake
        skipped = ("nat-fake", "tasks-queued", "tasks-active", "tasks-passive", "established", "use-in", "use-out")
        return {re.sub(r"-\d+$", "-N", key): fields(item) for key, item in value.items() if key not in skipped}

    seen = {kind: [fields(message) for name, message in transcripts[kind].heard if name == event]
            for kind in ("charon", "ipsecd")}  # fmt: skip
    assert seen["ipsecd"] == seen["charon"]
