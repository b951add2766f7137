"""explain, on a whole daemon and on one that remembers nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ipsec.ctl.advice import ADVICE
from ipsec.ctl.errors import ExitCode
from ipsec.daemon.run import Daemon
from ipsec.ike.due import NO_ANSWER
from ipsec.ike.failure import Cause, Failure, Terms
from ipsec.vici.client import connect
from tests.crypto.pki import DAY, EC_KEY, Ca
from tests.ctl.daemon import Run, with_ipsecd
from tests.ctl.fake import Ctl, FakeDaemon, child_sa, conn, ike_sa

MISMATCH = Failure(
    Cause.CHILD_PROPOSALS,
    "NO_PROPOSAL_CHOSEN: child net: no common encryption",
    "net",
    ours=Terms(("ESP:AES_CBC_256",), ("10.1.0.0/16",), ("10.2.0.0/16",)),
    theirs=Terms(("ESP:AES_GCM_16_128",), ("10.1.0.0/16",), ("10.2.0.0/16",)),
)


def test_nobody_has_tried(tmp_path: Path, ctl: Ctl) -> None:
    async def test(one: Daemon, run: Run) -> None:
        done = await run("explain", "old")
        assert done.status == ExitCode.OK
        assert "old not up" in done.out
        assert "nobody has tried so far: ipsecctl up old" in done.out
        assert "Certificates" not in done.out
        document = (await run("explain", "old", "--json")).document
        assert (document["conn"], document["up"], document["problems"]) == ("old", False, [])

    with_ipsecd(tmp_path, ctl, test)


def test_both_sides_of_what_differed(tmp_path: Path, ctl: Ctl) -> None:
    async def test(one: Daemon, run: Run) -> None:
        assert one.ike is not None
        for _ in range(3):
            one.ike.engine.note_without(MISMATCH, "old", ip_address("192.0.2.2"), initiator=False)
        done = await run("explain", "old")
        assert "child net: proposal-mismatch-child" in done.out
        assert "3 times in a row; 192.0.2.2 began, we refused" in done.out
        lines = [line.split() for line in done.out.splitlines()]
        assert ["proposals", "ours", "ESP:AES_CBC_256"] in lines
        assert ["proposals", "theirs", "ESP:AES_GCM_16_128"] in lines
        assert f"-> {ADVICE['proposal-mismatch-child']}" in done.out
        document = (await run("explain", "old/net", "--json")).document
        assert document["problems"][0]["theirs"]["proposals"] == ["ESP:AES_GCM_16_128"]
        assert document["problems"][0]["count"] == 3
        one.ike.engine.problems.came_up("old", "net")
        assert "has come up since" in (await run("explain", "old")).out

    with_ipsecd(tmp_path, ctl, test)


def test_who_does_not_answer_has_not_refused(tmp_path: Path, ctl: Ctl) -> None:
    async def test(one: Daemon, run: Run) -> None:
        assert one.ike is not None
        one.ike.engine.note_without(NO_ANSWER, "old", ip_address("192.0.2.2"), initiator=True)
        out = (await run("explain", "old")).out
        assert "; we began)" in out
        assert "refused" not in out

    with_ipsecd(tmp_path, ctl, test)


def test_a_certificate_that_is_over(tmp_path: Path, ctl: Ctl) -> None:
    async def test(one: Daemon, run: Run) -> None:
        ca, now = Ca("Root"), datetime.now(UTC)
        over = ca.issue("gw", EC_KEY, not_before=now - 30 * DAY, not_after=now - 3 * DAY)
        async with await connect(f"{tmp_path}/s") as session:
            key = EC_KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
            await session.request("load-key", {"type": "any", "data": key})
            await session.request("load-cert", {"type": "X509", "flag": "CA", "data": ca.certificate.der})
            auth = {"auth": "pubkey"}
            message = {"remote_addrs": ["192.0.2.9"], "children": {"x": {}}}
            message |= {"local": auth | {"certs": [over.der]}, "remote": auth | {"id": "peer.example"}}
            await session.request("load-conn", {"sig": message})
        done = await run("explain", "sig")
        assert "Certificates" in done.out
        assert "expired 3d" in done.out
        (cert,) = [one for one in (await run("explain", "sig", "--json")).document["certs"] if one["role"] == "ours"]
        assert cert["trouble"].startswith("expired")
        assert cert["has_key"]

    with_ipsecd(tmp_path, ctl, test)


@pytest.mark.parametrize(("auth", "shown"), [("eap-tls", True), ("eap-dynamic", True), ("eap-md5", False)])
def test_certificates_that_matter_with_eap(tmp_path: Path, ctl: Ctl, auth: str, shown: bool) -> None:
    async def test(one: Daemon, run: Run) -> None:
        async with await connect(f"{tmp_path}/s") as session:
            await session.request("load-cert", {"type": "X509", "flag": "CA", "data": Ca("Root").certificate.der})
            message = {"remote_addrs": ["192.0.2.9"], "children": {"x": {}}, "local": {"auth": "psk", "id": "gw"}}
            await session.request("load-conn", {"users": message | {"remote": {"auth": auth, "eap_id": "%any"}}})
        found = (await run("explain", "users", "--json")).document["certs"]
        assert [cert["role"] for cert in found] == (["authority"] if shown else [])

    with_ipsecd(tmp_path, ctl, test)


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_has_advice(cause: Cause) -> None:
    assert ADVICE[cause.value]


def test_unknown_name(tmp_path: Path, ctl: Ctl) -> None:
    async def test(one: Daemon, run: Run) -> None:
        done = await run("explain", "olt")
        assert done.status == ExitCode.UNKNOWN_NAME
        assert "did you mean old" in done.err

    with_ipsecd(tmp_path, ctl, test)


@pytest.mark.parametrize(
    ("more", "advice"),
    [
        ({}, "this daemon does not remember failures: ipsecctl up gw"),
        ({"remote": "%any"}, "this daemon does not remember failures"),
    ],
)
def test_a_charon(charon: FakeDaemon, ctl: Ctl, more: dict[str, str], advice: str) -> None:
    charon.conns["gw"] = conn(**more)
    done = ctl("explain", "gw")
    assert done.status == ExitCode.OK, done.err
    assert advice in done.out
    assert ctl("explain", "gw", "--json").document["problems"] is None
    charon.sas.append(("gw", ike_sa(children=[child_sa()])))
    done = ctl("explain", "gw")
    assert "gw up" in done.out
    assert "What to do" not in done.out


@pytest.mark.parametrize(("cause", "key"), [("no-answer", "dpd_action"), ("closed-by-peer", "close_action")])
def test_what_is_lost_and_not_tried_again(daemon: FakeDaemon, ctl: Ctl, cause: str, key: str) -> None:
    """Without these actions a child with start_action = start stays down."""
    daemon.conns["gw"] = conn()
    daemon.problem("gw", cause=cause)
    words = f"not tried again by itself: ipsecctl up gw; {key} = start"
    assert words not in ctl("explain", "gw").out
    daemon.conns["gw"]["children"]["net"]["ipsecd-start-action"] = "start"
    assert words in ctl("explain", "gw").out
    daemon.problems[0]["retry-in"] = "7"
    assert words not in ctl("explain", "gw").out


def test_who_comes_again_and_again_is_one_line(tmp_path: Path, ctl: Ctl) -> None:
    async def test(one: Daemon, run: Run) -> None:
        assert one.ike is not None
        for host in (9, 8, 7, 6, 6, 6):
            one.ike.engine.note_without(MISMATCH, "", ip_address(f"192.0.2.{host}"), initiator=False)
        advice = (await run("explain", "old", "--json")).document["advice"]
        assert [line.split(",")[0] for line in advice[:-1]] == [
            "192.0.2.8 came 1 time",
            "192.0.2.7 came 1 time",
            "192.0.2.6 came 3 times",
        ]

    with_ipsecd(tmp_path, ctl, test)


def test_whom_no_connection_is_for(daemon: FakeDaemon, ctl: Ctl) -> None:
    daemon.conns["gw"] = conn()
    why = "no connection has 192.0.2.1 and 192.0.2.9"
    daemon.problem("", **{"remote-host": "192.0.2.9", "count": 3, "cause": "no-connection", "reason": why})
    words = f"192.0.2.9 came 3 times, and none of the connections was for it: {why}"
    assert words in ctl("explain", "gw").out
    assert ctl("explain", "gw", "--json").document["advice"][0] == words
    daemon.problem("gw")
    assert "192.0.2.9" not in ctl("explain", "gw").out
