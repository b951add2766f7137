"""States of tunnels, and what status shows of them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ipsec.ctl.errors import ExitCode
from ipsec.ctl.tunnels import Snapshot, State
from ipsec.ctl.view import Conn, IkeSa, Policy
from tests.ctl.fake import Ctl, FakeDaemon, child_sa, conn, ike_sa


def encoded(value: Any) -> Any:
    """A message as it comes from the wire."""
    if isinstance(value, dict):
        return {key: encoded(item) for key, item in value.items()}
    return [str(item).encode() for item in value] if isinstance(value, list) else str(value).encode()


def state_of(config: Any, sas: list[Any], policies: tuple[str, ...] = (), mode: str = "TUNNEL") -> tuple[State, ...]:
    """The state of a connection, and those of its children."""
    snapshot = Snapshot(
        (Conn.of("c", encoded(config)),) if config else (),
        tuple(IkeSa.of("c", encoded(sa)) for sa in sas),
        tuple(Policy.of(f"c/{name}", {"mode": mode.encode()}) for name in policies),
    )
    (tunnel,) = snapshot.tunnels()
    return (tunnel.state, *(child.state for child in tunnel.children))


def on_request(*children: str) -> Any:
    """A connection with children that nobody is to bring up by himself, as ipsecd has it."""
    found = conn(children=children)
    for child in found["children"].values():
        child["ipsecd-start-action"] = "none"
    return found


MIXED = on_request("x", "y")
MIXED["children"]["y"]["ipsecd-start-action"] = "start"
TWO = conn(children=("x", "y"))
SHUNT = conn(children=("x",))
SHUNT["children"]["x"]["mode"] = "DROP"
OLD = ike_sa(1, [child_sa()], replaced="yes")
NEGOTIATING = ike_sa(state="CONNECTING")


@pytest.mark.parametrize(
    ("config", "sas", "policies", "states"),
    [
        (conn(), [], (), (State.DOWN, State.DOWN)),
        (conn(), [ike_sa(1, [child_sa()])], (), (State.UP, State.UP)),
        (conn(), [ike_sa(1, [child_sa(state="REKEYED"), child_sa(uid=2)])], (), (State.UP, State.UP)),
        (conn(), [ike_sa(1)], (), (State.PARTLY, State.DOWN)),
        (conn(), [NEGOTIATING], (), (State.CONNECTING, State.DOWN)),
        (conn(), [ike_sa(1, [child_sa(state="INSTALLING")])], (), (State.CONNECTING, State.CONNECTING)),
        (conn(), [], ("net",), (State.ON_DEMAND, State.ON_DEMAND)),
        (conn(), [ike_sa(1, [child_sa()])], ("net",), (State.UP, State.UP)),
        (TWO, [ike_sa(1, [child_sa("x")])], (), (State.PARTLY, State.UP, State.DOWN)),
        (TWO, [ike_sa(1, [child_sa("x")])], ("y",), (State.UP, State.UP, State.ON_DEMAND)),
        (TWO, [NEGOTIATING, ike_sa(1, [child_sa("x")])], (), (State.PARTLY, State.UP, State.DOWN)),
        (conn("%any"), [], (), (State.WAITING, State.WAITING)),
        (conn("%any"), [ike_sa(1, [child_sa()]), ike_sa(2, [child_sa(uid=2)])], (), (State.UP, State.UP)),
        (on_request("net"), [], (), (State.IDLE, State.IDLE)),
        (on_request("net"), [NEGOTIATING], (), (State.CONNECTING, State.IDLE)),
        (on_request("net"), [ike_sa(1, [child_sa()])], (), (State.UP, State.UP)),
        (on_request("net"), [ike_sa(1)], (), (State.PARTLY, State.IDLE)),
        (on_request("x", "y"), [ike_sa(1, [child_sa("x")])], (), (State.UP, State.UP, State.IDLE)),
        (MIXED, [], (), (State.DOWN, State.IDLE, State.DOWN)),
        # a trap beside start waits for traffic, and yet it is to be up already
        (MIXED, [], ("y",), (State.DOWN, State.IDLE, State.DOWN)),
        (on_request("x", "y"), [], ("y",), (State.ON_DEMAND, State.IDLE, State.ON_DEMAND)),
        (conn(children=()), [], (), (State.DOWN,)),
        (conn(children=()), [ike_sa(1)], (), (State.UP,)),
        (SHUNT, [], (), (State.OFF, State.OFF)),
        (SHUNT, [], ("x",), (State.SHUNT, State.SHUNT)),
        (None, [ike_sa(1, [child_sa("old")])], (), (State.UP, State.UP)),
        (conn(), [ike_sa(1, [child_sa(), child_sa("old", 2)])], (), (State.UP, State.UP, State.UP)),
        # with who was the peer before
        (conn(), [OLD], (), (State.DOWN, State.DOWN)),
        (conn(), [OLD], ("net",), (State.ON_DEMAND, State.ON_DEMAND)),
        (conn(), [OLD, NEGOTIATING], (), (State.CONNECTING, State.DOWN)),
        (conn(), [OLD, ike_sa(2, [child_sa(uid=2)])], (), (State.UP, State.UP)),
        (on_request("x"), [OLD], (), (State.IDLE, State.IDLE, State.IDLE)),
        (conn(children=()), [ike_sa(1, replaced="yes")], (), (State.DOWN,)),
    ],
)
def test_states(config: Any, sas: list[Any], policies: tuple[str, ...], states: tuple[State, ...]) -> None:
    assert state_of(config, sas, policies) == states


@pytest.fixture
def busy(daemon: FakeDaemon) -> FakeDaemon:
    """One of everything."""
    daemon.conns = {"up": conn(), "down": conn("192.0.2.9"), "road": conn("%any")}
    daemon.sas = [
        ("up", ike_sa(1, [child_sa()])),
        ("road", ike_sa(2, [child_sa(uid=2)], **{"remote-host": "203.0.113.1", "remote-id": "carol"})),
        ("road", ike_sa(3, [child_sa(uid=3)], **{"remote-host": "203.0.113.2", "remote-vips": ["10.9.0.1"]})),
    ]
    return daemon


def test_screen(busy: FakeDaemon, ctl: Ctl) -> None:
    done = ctl("status", "--sample", "0")
    assert done.status == 0
    lines = done.out.splitlines()
    assert lines[0] == "ipsecd 1.2.3 | running 3 days | 3 connections | 1 down | 2 up"
    assert lines[1] == (
        "ipsec0, MTU 1422 | 1 worker | without udp_gso | dropped since the start: IN_STATE_SEQ_ERROR 12, OUT_NO_POLS 1"
    )
    assert lines[2] == "! the disk is full"
    assert lines[5].startswith("down "), "what is down comes first"
    assert re.search(r"(?m)^down +down +192\.0\.2\.9 b\.example$", done.out)
    assert re.search(r"(?m)^up +up +192\.0\.2\.2 b\.example +AES_GCM_16-256 CURVE_25519 +2m 00s +3h 36m$", done.out)
    assert re.search(r"(?m)^  net +up +10\.1\.0\.0/16 === 10\.2\.0\.0/16 +AES_GCM_16-128 +1m 00s +50m$", done.out)
    assert re.search(r"(?m)^road +up +2 peers$", done.out)
    assert re.search(r"(?m)^  \[3\] +up +203\.0\.113\.2 b\.example 10\.9\.0\.1 ", done.out)


def test_what_is_down_is_shown_beside_several_sas(daemon: FakeDaemon, ctl: Ctl) -> None:
    """As while an IKE_SA is being replaced."""
    daemon.conns = {"gw": conn(children=("net", "voice"))}
    daemon.sas = [("gw", ike_sa(1, [child_sa("net")], state="DELETING")), ("gw", ike_sa(2))]
    out = ctl("status", "--sample", "0").out
    assert re.search(r"(?m)^gw +1 of 2 up +2 IKE_SAs$", out)
    assert re.search(r"(?m)^  \[1\] +deleting ", out)
    assert re.search(r"(?m)^    net +up ", out)
    assert re.search(r"(?m)^  voice +down ", out)


def test_rates(busy: FakeDaemon, ctl: Ctl) -> None:
    busy.growth = 10_000
    document = ctl("status", "--sample", "0.05", "--json").document
    (child,) = document["connections"][0]["children"]
    assert 100_000 < child["bits_in_per_s"] <= 1_600_000
    assert (child["bits_out_per_s"], child["packets_in_per_s"]) == (0, 0)
    assert re.search(r"\bin [\d.]+ [kM]bit/s, out 0 bit/s$", ctl("status", "--sample", "0.05").out.splitlines()[0])


def test_document(busy: FakeDaemon, ctl: Ctl) -> None:
    document = ctl("status", "--sample", "0", "--json").document
    assert document["daemon"].items() >= {"name": "ipsecd", "version": "1.2.3", "running": "3 days"}.items()
    assert document["daemon"]["data_path"]["offloads"] == {"udp_gso": False, "udp_gro": True}
    assert (document["summary"]["up"], document["summary"]["down"]) == (2, 1)
    road = document["connections"][2]
    assert (road["name"], road["state"], road["children"][0]["sas"]) == ("road", "up", [2, 3])
    assert road["ike_sas"][1]["remote_vips"] == ["10.9.0.1"]
    assert road["ike_sas"][0]["children"][0]["suite"]["encr_bits"] == 128
    assert road["ike_sas"][0]["children"][0]["bits_in_per_s"] is None


def test_problems(busy: FakeDaemon, ctl: Ctl) -> None:
    """The last one of what is not up; all of what is named."""
    busy.problem("up", reason="long ago")
    busy.problem("down", reason="it was over", over="yes", time="2020-01-01T00:00:00+00:00")
    busy.problem("down", reason="they do not like us", child="net", count=3)
    out = ctl("status", "--sample", "0").out
    assert re.search(r"(?m)^  ! \ds ago, 3 times: net: they do not like us$", out)
    assert "long ago" not in out
    assert "it was over" not in out
    assert re.search(r"ago, over: it was over$", ctl("status", "--sample", "0", "down").out.rstrip())
    (problem, _) = ctl("status", "--sample", "0", "--json", "down").document["connections"][0]["problems"]
    assert (problem["reason"], problem["count"], problem["over"]) == ("they do not like us", 3, False)


def test_drops(busy: FakeDaemon, ctl: Ctl) -> None:
    busy.drops = {("up", 1, "net-1"): {"IN_STATE_SEQ_ERROR": 3, "IN_TMPL_MISMATCH": 2}}
    out = ctl("status", "--sample", "0").out
    assert re.search(r"(?m)^up +up .* 3h 36m +5$", out)
    assert re.search(r"(?m)^  net +up .* 50m +5$", out)
    assert re.search(r"dropped +IN_STATE_SEQ_ERROR 3, IN_TMPL_MISMATCH 2\n", ctl("status", "--sample", "0", "up").out)
    child = ctl("status", "--sample", "0", "--json").document["connections"][0]["ike_sas"][0]["children"][0]
    assert child["drops"] == {"IN_STATE_SEQ_ERROR": 3, "IN_TMPL_MISMATCH": 2}


def test_charon_knows_less(charon: FakeDaemon, ctl: Ctl) -> None:
    charon.conns = {"gw": conn()}
    charon.sas = [("gw", ike_sa(1, [child_sa()]))]
    document = ctl("status", "--json", "--sample", "0").document
    assert document["daemon"]["data_path"] is None
    assert document["connections"][0]["problems"] == []
    assert document["connections"][0]["ike_sas"][0]["children"][0]["drops"] is None
    assert re.search(r"(?m)^gw +up ", ctl("status", "--sample", "0").out)


def test_check(busy: FakeDaemon, ctl: Ctl) -> None:
    assert ctl("status", "--sample", "0", "--check").status == ExitCode.DIFFERS
    assert ctl("status", "--sample", "0", "--check", "up", "road").status == ExitCode.OK


def test_what_is_idle_is_no_trouble_unless_it_is_named(daemon: FakeDaemon, ctl: Ctl) -> None:
    daemon.conns = {"c": on_request("net")}
    assert ctl("status", "--check").status == ExitCode.OK
    assert ctl("status", "--check", "c").status == ExitCode.DIFFERS


def negotiating(**more: Any) -> Any:
    """An IKE_SA whose peer has not answered yet."""
    return ike_sa(9, state="CONNECTING", **more)


@pytest.mark.parametrize(
    ("config", "sas", "names", "wrong"),
    [
        # a peer that is dead is connecting for most of the time
        (conn(), [negotiating()], (), True),
        (conn(), [negotiating()], ("c",), True),
        (conn(), [ike_sa(1, [child_sa(state="INSTALLING")])], (), True),
        # somebody, or traffic, has asked for it
        (on_request("net"), [negotiating()], (), True),
        (on_request("net"), [], (), False),
        (on_request("net"), [], ("c",), True),
        (on_request("net"), [negotiating(initiator="no")], (), False),
        (on_request("net"), [negotiating(initiator="no")], ("c",), True),
        # re-authentication, and another child that is up
        (conn(), [ike_sa(1, [child_sa()]), negotiating()], (), False),
        (conn(), [ike_sa(1, [child_sa()]), negotiating()], ("c",), False),
        (MIXED, [ike_sa(1, [child_sa("x")]), negotiating()], (), True),
        (conn(children=()), [negotiating()], (), True),
        (conn(children=()), [ike_sa(1), negotiating()], (), False),
        # whoever sends a first message is no alarm
        (conn("%any"), [negotiating(initiator="no")], (), False),
        (conn("%any"), [negotiating(initiator="no")], ("c", "c/net"), False),
        # of a child that is named only that counts
        (on_request("x", "y"), [ike_sa(1, [child_sa("x")])], ("c",), False),
        (on_request("x", "y"), [ike_sa(1, [child_sa("x")])], ("c/x",), False),
        (on_request("x", "y"), [ike_sa(1, [child_sa("x")])], ("c/y",), True),
        (MIXED, [ike_sa(1, [child_sa("x")])], ("x",), False),
        # with who was the peer before
        (conn(), [OLD], (), True),
        (on_request("net"), [OLD], (), False),
        (on_request("net"), [OLD], ("c",), True),
        (conn(children=()), [ike_sa(1, replaced="yes")], (), True),
        # what was closed a moment ago is not down
        (on_request("x", "y"), [ike_sa(1, [child_sa("x"), child_sa("y", 2, state="DELETED")])], (), False),
        (conn("%any"), [ike_sa(1, [child_sa(state="DELETED")])], (), False),
    ],
)
def test_check_minds_what_is_wanted(
    daemon: FakeDaemon, ctl: Ctl, config: Any, sas: list[Any], names: tuple[str, ...], wrong: bool
) -> None:
    daemon.conns = {"c": config}
    daemon.sas = [("c", sa) for sa in sas]
    status = ctl("status", "--sample", "0", "--check", *names).status
    assert status == (ExitCode.DIFFERS if wrong else ExitCode.OK)


BY_HAND = {
    "mode": "TUNNEL",
    "local-host": "192.0.2.1",
    "remote-host": "192.0.2.9",
    "remote-port": 4500,
    "encap": "yes",
    "spi-in": "10000001",
    "spi-out": "20000001",
    "suite": "aes128gcm16",
    "esn": "1",
    "bytes-in": 1000,
    "packets-in": 10,
    "use-in": 1,
    "number-in": 10,
    "bytes-out": 0,
    "packets-out": 0,
    "number-out": 0,
    "drops": {"IN_STATE_SEQ_ERROR": 2},
    "local-ts": ["10.1.0.0/16"],
    "remote-ts": ["10.9.0.0/16"],
}


def test_manual_sas(daemon: FakeDaemon, ctl: Ctl) -> None:
    daemon.manual = {"by-hand": dict(BY_HAND)}
    daemon.growth = 10_000
    out = ctl("status", "--sample", "0.05").out
    assert re.search(r"\| 1 manual SA \| in [\d.]+ [kM]bit/s, out 0 bit/s$", out.splitlines()[0])
    row = r"(?m)^by-hand +manual +192\.0\.2\.9 10\.1\.0\.0/16 === 10\.9\.0\.0/16 +aes128gcm16 +[\d.]+ [kM]bit/s +0 +2$"
    assert re.search(row, out)
    (found,) = ctl("status", "--json", "--sample", "0").document["manual_sas"]
    assert (found["remote_port"], found["esn"], found["number_in"], found["idle_out_s"]) == (4500, True, 10, None)
    assert found["bits_in_per_s"] is None


def test_manual_sas_by_name(daemon: FakeDaemon, ctl: Ctl) -> None:
    daemon.manual = {name: dict(BY_HAND) for name in ("by-hand", "other")}
    daemon.conns = {"by-day": conn()}
    out = ctl("status", "--sample", "0", "by-hand").out
    assert "10000001_i 20000001_o" in out
    assert "ESP in UDP, port 4500" in out
    assert "other" not in out
    assert "by-day" not in out
    document = ctl("status", "--sample", "0", "--json", "by-*").document
    assert [one["name"] for key in ("connections", "manual_sas") for one in document[key]] == ["by-day", "by-hand"]
    assert "did you mean by-hand?" in ctl("status", "by-hands").err


@pytest.mark.parametrize("verb", ["up", "down", "rekey", "explain", "log"])
def test_manual_sas_cannot_be_steered(daemon: FakeDaemon, ctl: Ctl, verb: str) -> None:
    daemon.manual = {"by-hand": dict(BY_HAND)}
    done = ctl(verb, "by-hand")
    assert done.status == ExitCode.UNKNOWN_NAME
    assert "by-hand is a manual SA (section sas): it is in place as long as the daemon runs" in done.err
    assert "ipsecctl status by-hand" in done.err


def test_manual_sas_give_way_on_a_small_screen(daemon: FakeDaemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.conns = {f"c{index}": conn() for index in range(4)}
    daemon.manual = {f"m{index}": dict(BY_HAND) for index in range(8)}
    monkeypatch.setenv("LINES", "14")
    out = re.sub(r"\x1b\[[\d;]*m", "", ctl("status", "--sample", "0", "--color", "always").out)
    assert len(out.splitlines()) < 14
    assert "c3" in out
    assert "not shown: 8 manual SAs" in out


def test_a_wrong_name_is_told_at_once(busy: FakeDaemon, ctl: Ctl) -> None:
    ctl("status", "--sample", "60", "upp")
    assert [name for name, _ in busy.asked].count("list-sas") == 1


def test_details(busy: FakeDaemon, ctl: Ctl) -> None:
    out = ctl("status", "--sample", "0", "up").out
    assert "192.0.2.1:4500 [a.example] ... 192.0.2.2:4500 [b.example]" in out
    assert "c0000001_i d0000001_o" in out
    assert "road" not in out
    assert "net down  10.1.0.0/16 === 10.2.0.0/16" in ctl("status", "--sample", "0", "down").out


def test_a_nat_that_may_be_pretended(daemon: FakeDaemon, ctl: Ctl) -> None:
    daemon.conns = {"c": conn()}
    daemon.sas = [("c", ike_sa(1, **{"nat-remote": "yes", "nat-fake": "yes"}))]
    assert "NAT before  the peer, or pretended as by us\n" in ctl("status", "--sample", "0", "c").out


def test_postquantum(daemon: FakeDaemon, ctl: Ctl) -> None:
    daemon.conns = {"c": conn()}
    daemon.sas = [("c", ike_sa(1, ppk="yes")), ("c", ike_sa(2))]
    assert ctl("status", "--sample", "0", "c").out.count(", postquantum preshared key\n") == 1
    sas = ctl("list", "sas", "--json").document["sas"]
    assert [sa["ppk"] for sa in sas] == [True, False]


def test_what_is_with_the_old_peer_is_shown_as_that(daemon: FakeDaemon, ctl: Ctl) -> None:
    daemon.conns = {"c": conn()}
    daemon.sas = [("c", OLD), ("c", ike_sa(2, [child_sa(uid=2)]))]
    assert ctl("status", "--sample", "0", "c").out.count("replaced  the connection has another peer now\n") == 1
    assert [sa["replaced"] for sa in ctl("list", "sas", "--json").document["sas"]] == [True, False]


def test_names(busy: FakeDaemon, ctl: Ctl) -> None:
    done = ctl("status", "--sample", "0", "upp")
    assert done.status == ExitCode.UNKNOWN_NAME
    assert "no connection, child or SA 'upp'" in done.err
    assert "did you mean up" in done.err
    document = ctl("status", "--sample", "0", "--json", "*o*").document
    assert [one["name"] for one in document["connections"]] == ["down", "road"]


def test_empty_daemon(daemon: FakeDaemon, ctl: Ctl) -> None:
    assert "No connections are loaded" in ctl("status").out
    assert ctl("status", "--json").document["connections"] == []
    assert "ipsecctl load" in ctl("status", "x").err


def test_what_a_peer_says_moves_no_cursor(busy: FakeDaemon, ctl: Ctl) -> None:
    """Identities come from the network."""
    evil = b"\x1b]0;owned\x07\x1b[2J\xff\xe2\x80\xae"
    busy.sas[0][1]["remote-id"] = evil
    for arguments in ((), ("up",), ("--json",)):
        out = ctl("status", "--sample", "0", *arguments).out
        assert out.replace("\n", "").isprintable()
        assert "x1b]0;owned" in out


@pytest.mark.parametrize(("height", "shown"), [(60, "net"), (18, "up"), (11, "not shown: 6 up")])
def test_one_screen(daemon: FakeDaemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch, height: int, shown: str) -> None:
    """A terminal gets what it has lines for, trouble first."""
    daemon.conns = {f"c{index}": conn() for index in range(8)}
    daemon.sas = [(f"c{index}", ike_sa(index, [child_sa(uid=index)])) for index in range(1, 7)]
    monkeypatch.setenv("LINES", str(height))
    monkeypatch.setenv("COLUMNS", "100")
    out = re.sub(r"\x1b\[[\d;]*m", "", ctl("status", "--sample", "0", "--color", "always").out)
    assert len(out.splitlines()) < height
    assert all(len(line) <= 100 for line in out.splitlines())
    assert re.search(r"(?m)^c0 +down", out)
    assert shown in out
    assert ("not shown" in out) == (height == 11)
    everything = ctl("status", "--sample", "0", "--color", "always", "--all").out
    assert everything.count("net") == 8


def test_all_key_exchanges_of_an_sa_are_shown(daemon: FakeDaemon, ctl: Ctl) -> None:
    """RFC 9370; strongSwan 6 has the additional ones in fields of their own."""
    daemon.conns = {"up": conn()}
    daemon.sas = [("up", ike_sa(1, [child_sa()], ake1="ML_KEM_768", ake3="ECP_384"))]
    done = ctl("status", "--sample", "0")
    assert "AES_GCM_16-256 CURVE_25519/KE1_ML_KEM_768/KE3_ECP_384 " in done.out
