"""up, down, rekey, redirect, install, uninstall."""

from __future__ import annotations

import os
import re
import signal
import threading

import pytest

from ipsec.ctl.advice import ADVICE, cause_in_log
from ipsec.ctl.errors import ExitCode
from ipsec.ike.failure import Cause
from ipsec.vici.codec import text
from tests.ctl.fake import Ctl, FakeDaemon, child_sa, conn, ike_sa


def asked(daemon: FakeDaemon, command: str) -> list[dict[str, str]]:
    """Messages of a command that came, as text."""
    return [{key: text(message, key) for key in message} for name, message in daemon.asked if name == command]


@pytest.fixture
def two(daemon: FakeDaemon) -> FakeDaemon:
    """A connection with two children, one with one, one that peers have to begin."""
    daemon.conns = {"gw": conn(children=("net", "voice")), "branch": conn(children=("net",)), "road": conn("%any")}
    return daemon


def test_up_shows_the_exchange_and_what_came_up(two: FakeDaemon, ctl: Ctl) -> None:
    two.log = ["gw[3]: connecting to 192.0.2.2", "\x1b[2J"]
    done = ctl("up", "gw/net")
    assert done.status == 0
    assert re.search(r"(?m)^ +\d+\.\d{3}  gw: connecting to 192\.0\.2\.2$", done.err)
    assert "\x1b" not in done.err
    assert re.match(r"gw/net up: 10\.1\.0\.0/16 === 10\.2\.0\.0/16, AES_GCM_16-128 \([\d.]+ s\)\n$", done.out)
    assert asked(two, "initiate") == [{"ike": "gw", "child": "net", "timeout": "60000"}]
    assert ctl("up", "gw/net").out.startswith("gw/net is up already")
    assert len(asked(two, "initiate")) == 1


def test_up_minds_no_sa_with_the_old_peer(two: FakeDaemon, ctl: Ctl) -> None:
    two.sas = [("gw", ike_sa(5, [child_sa("net", 6)], replaced="yes"))]
    assert re.match(r"gw/net up: .* s\)\n$", ctl("up", "gw/net").out)
    assert asked(two, "initiate") == [{"ike": "gw", "child": "net", "timeout": "60000"}]


def test_up_of_a_connection_is_all_its_children(two: FakeDaemon, ctl: Ctl) -> None:
    document = ctl("up", "gw", "--json", "--timeout", "5").document
    assert [(one["name"], one["result"]) for one in document["results"]] == [("gw/net", "up"), ("gw/voice", "up")]
    assert [one["child"] for one in asked(two, "initiate")] == ["net", "voice"]


def test_up_all_leaves_out_what_only_peers_can_begin(two: FakeDaemon, ctl: Ctl) -> None:
    assert ctl("up", "--all", "--quiet", "--no-wait").status == 0
    assert sorted({one["ike"] for one in asked(two, "initiate")}) == ["branch", "gw"]
    assert {one["timeout"] for one in asked(two, "initiate")} == {"-1"}
    done = ctl("up", "road")
    assert done.status == ExitCode.FAILED
    assert "the peer has to begin" in done.out


def test_up_of_what_passes_or_drops(two: FakeDaemon, ctl: Ctl) -> None:
    """Its policies are put in place: there is no peer to connect to."""
    two.conns = {"by": conn(children=("a", "b")), "gw": conn(children=("net", "c"))}
    for name, child in (("by", "a"), ("by", "b"), ("gw", "c")):
        two.conns[name]["children"][child]["mode"] = "PASS"
    assert ctl("up", "by", "gw").status == 0
    begun = sorted((one["ike"], one["child"]) for one in asked(two, "initiate"))
    assert begun == [("by", "a"), ("by", "b"), ("gw", "net")]
    two.asked.clear()
    two.sas.clear()
    assert ctl("up", "--all").status == 0
    assert [(one["ike"], one["child"]) for one in asked(two, "initiate")] == [("gw", "net")]


def test_up_without_names(two: FakeDaemon, ctl: Ctl) -> None:
    assert ctl("up").status == ExitCode.USAGE
    assert ctl("up", "gw", "--all").status == ExitCode.USAGE
    done = ctl("up", "net")
    assert done.status == ExitCode.UNKNOWN_NAME
    assert "gw/net, branch/net" in done.err
    two.sas = [("gw", ike_sa(5))]
    assert "is an SA" in ctl("up", "gw[5]").err


def test_up_that_fails_says_why(two: FakeDaemon, ctl: Ctl) -> None:
    """From a charon, by its log."""
    two.fails = "at once"
    two.log = ["initiating IKE_SA branch[7] to 192.0.2.2", "received NO_PROPOSAL_CHOSEN notify error"]
    done = ctl("up", "branch")
    assert done.status == ExitCode.FAILED
    assert "branch/net not up: received NO_PROPOSAL_CHOSEN notify error" in done.out
    assert "`proposals` of the two ends" in done.out
    (result,) = ctl("up", "branch", "--json").document["results"]
    assert (result["result"], result["cause"]) == ("failed", "proposal-mismatch-ike")


def test_up_uses_what_the_daemon_keeps_of_failures(two: FakeDaemon, ctl: Ctl) -> None:
    two.fails = "at once"
    two.problem("branch", cause="local-auth-failed", reason="192.0.2.2 refuses us as a.example")
    (result,) = ctl("up", "branch", "--json").document["results"]
    assert (result["cause"], result["reason"]) == ("local-auth-failed", "192.0.2.2 refuses us as a.example")
    assert "local.id" in result["remedy"]
    # one from yesterday has nothing to do with it
    two.problems.clear()
    two.problem("branch", time="2020-01-01T00:00:00+00:00")
    (result,) = ctl("up", "branch", "--json").document["results"]
    assert (result["cause"], result["remedy"]) == ("", "see `ipsecctl explain branch`")


def test_up_that_takes_too_long(two: FakeDaemon, ctl: Ctl) -> None:
    two.fails = "never"
    done = ctl("up", "branch", "--timeout", "0.05")
    assert done.status == ExitCode.TIMEOUT
    assert "`ipsecctl down branch` stops it" in done.out


def test_up_that_takes_long_says_why_meanwhile(two: FakeDaemon, ctl: Ctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipsec.ctl.up.HINT_AFTER_S", 0)
    two.fails = "never"
    two.log = ["branch[3]: 192.0.2.2 answers NO_PROPOSAL_CHOSEN; we offered IKE:X", "retransmit 1 of request"]
    err = ctl("up", "branch", "--timeout", "0.2").err
    assert "waiting; likely: `proposals` of the two ends" in err
    assert err.count("likely") == 1
    assert "likely" not in ctl("up", "branch", "--timeout", "0.05", "--quiet").err


@pytest.mark.parametrize(("was_there", "replaced"), [(False, False), (True, False), (False, True)])
def test_interrupted_up_leaves_things_as_they_were(
    two: FakeDaemon, ctl: Ctl, was_there: bool, replaced: bool
) -> None:
    two.fails = "never"
    if was_there:
        two.sas = [("gw", ike_sa(5, [child_sa("voice", 6)]))]
    if replaced:
        # what is there with the old peer is not what was asked for, and stays
        two.sas = [("gw", ike_sa(5, [child_sa("net", 6)], replaced="yes"))]
    before = list(two.sas)

    def interrupt() -> None:
        assert two.begun.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    done = ctl("up", "gw/net", "--timeout", "0")
    thread.join()
    assert done.status == ExitCode.INTERRUPTED
    assert "interrupted" in done.err
    if was_there:
        # nothing of ours has come up, and the IKE_SA is not ours to close
        assert asked(two, "terminate") == []
    else:
        assert asked(two, "terminate") == [{"ike-id": "99", "timeout": "2000", "force": "yes"}]
        assert two.sas == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gw",), {"ike": "gw"}),
        (("voice",), {"ike": "gw", "child": "voice"}),
        (("gw/net",), {"ike": "gw", "child": "net"}),
        (("gw[5]",), {"ike-id": "5"}),
        (("--ike-id", "5"), {"ike-id": "5"}),
        (("net{6}",), {"child-id": "6"}),
        (("--child-id", "6"), {"child-id": "6"}),
    ],
)
def test_what_names_choose(two: FakeDaemon, ctl: Ctl, arguments: tuple[str, ...], message: dict[str, str]) -> None:
    two.sas = [("gw", ike_sa(5, [child_sa("net", 6), child_sa("voice", 7)]))]
    assert ctl("down", *arguments, "--quiet").status == 0
    assert asked(two, "terminate") == [message | {"timeout": "15000"}]


def test_down(two: FakeDaemon, ctl: Ctl) -> None:
    two.sas = [("gw", ike_sa(5, [child_sa("net", 6), child_sa("voice", 7)]))]
    (result,) = ctl("down", "gw", "--json").document["results"]
    assert result == {"name": "gw", "result": "down", "closed": 3, "reason": "", "remedy": ""}
    done = ctl("down", "gw", "branch")
    assert (done.status, done.out) == (0, "gw is not up\nbranch is not up\n")
    assert ctl("down").status == ExitCode.USAGE
    assert ctl("down", "--ike-id", "9").status == ExitCode.UNKNOWN_NAME


def test_down_of_a_peer_that_does_not_answer(two: FakeDaemon, ctl: Ctl) -> None:
    two.sas = [("gw", ike_sa(5))]
    two.fails = "never"
    done = ctl("down", "gw")
    assert done.status == ExitCode.TIMEOUT
    assert "`ipsecctl down --force gw`" in done.out
    assert ctl("down", "gw", "--force").status == 0


def test_down_of_a_child_that_the_daemon_cannot_forget(two: FakeDaemon, ctl: Ctl) -> None:
    """As with a charon: the advice must not be the very command that has failed."""
    two.sas = [("gw", ike_sa(5, [child_sa("voice", 7)]))]
    two.fails = "always"
    (result,) = ctl("down", "gw/voice", "--json").document["results"]
    assert "`ipsecctl down --force gw/voice`" in result["remedy"]
    done = ctl("down", "gw/voice", "--force")
    assert done.status == ExitCode.TIMEOUT
    assert "can only forget whole IKE_SAs: `ipsecctl down --force gw`" in done.out
    assert "`" not in ctl("down", "gw", "--force").out


def test_down_counts_what_was_up(two: FakeDaemon, ctl: Ctl) -> None:
    gone = [child_sa("net", 8, state="DELETED"), child_sa("voice", 9, state="REKEYED")]
    two.sas = [("gw", ike_sa(5, [child_sa("net", 6), child_sa("voice", 7), *gone])), ("gw", ike_sa(4, state="REKEYED"))]
    assert ctl("down", "gw/*").out == "gw/net down (1 SA closed)\ngw/voice down (1 SA closed)\n"
    assert ctl("down", "gw").out == "gw down (3 SAs closed)\n"


def test_down_of_what_is_not_configured_any_more(daemon: FakeDaemon, ctl: Ctl) -> None:
    daemon.sas = [("old", ike_sa(5))]
    assert ctl("down", "old").out == "old down (1 SA closed)\n"


def test_rekey(two: FakeDaemon, ctl: Ctl) -> None:
    two.sas = [("gw", ike_sa(5, [child_sa("net", 6), child_sa("voice", 7)]))]
    assert ctl("rekey", "gw").out == "gw rekeyed (1 SA)\n"
    assert ctl("rekey", "gw/*").out == "gw/net rekeyed (1 SA)\ngw/voice rekeyed (1 SA)\n"
    assert ctl("rekey", "gw", "--no-wait").out == "gw is being rekeyed (1 SA)\n"
    assert asked(two, "rekey")[0] == {"ike": "gw"}
    done = ctl("rekey", "branch")
    assert (done.status, done.out) == (ExitCode.FAILED, "branch is not up\n")
    two.fails = "at once"
    done = ctl("rekey", "gw", "--json", "--timeout", "0.05")
    assert (done.status, done.document["results"][0]["result"]) == (ExitCode.TIMEOUT, "timeout")
    assert ctl("rekey", "--reauth", "gw/net").status == ExitCode.USAGE


def test_redirect(two: FakeDaemon, ctl: Ctl) -> None:
    two.sas = [("gw", ike_sa(5))]
    assert ctl("redirect", "gw", "--to", "192.0.2.9").out == "1 peer sent to 192.0.2.9\n"
    assert ctl("redirect", "gw", "--to", "192.0.2.9", "--json").document["matches"] == 1
    assert asked(two, "redirect")[0] == {"ike": "gw", "gateway": "192.0.2.9"}
    done = ctl("redirect", "branch", "--to", "192.0.2.9")
    assert done.status == ExitCode.UNKNOWN_NAME
    assert "came to us" in done.err
    assert ctl("redirect", "--to", "192.0.2.9").status == ExitCode.USAGE
    assert ctl("redirect", "gw/net", "--to", "192.0.2.9").status == ExitCode.FAILED


def test_redirect_of_several(two: FakeDaemon, ctl: Ctl) -> None:
    """One that has no peer up does not keep the others from it."""
    two.conns = {"branch": two.conns["branch"], **two.conns}
    two.sas = [("gw", ike_sa(5)), ("road", ike_sa(6))]
    assert ctl("redirect", "*", "--to", "192.0.2.9").out == "2 peers sent to 192.0.2.9 (gw 1, road 1)\n"
    document = ctl("redirect", "branch", "gw", "--to", "192.0.2.9", "--json").document
    assert document["matches"] == 1
    assert document["unsupported"] == 0
    results = [(one["name"], one["matches"], one["unsupported"]) for one in document["results"]]
    assert results == [("branch", 0, 0), ("gw", 1, 0)]
    two.sas = []
    done = ctl("redirect", "*", "--to", "192.0.2.9", "--json")
    assert (done.status, done.document["error"]) == (ExitCode.UNKNOWN_NAME, "unknown-name")


def test_redirect_of_peers_that_do_not_support_it(two: FakeDaemon, ctl: Ctl) -> None:
    """RFC 5685 section 5 does not let us ask them: it is said whom that concerns, and is no success if it is all."""
    two.sas = [("gw", ike_sa(5)), ("road", ike_sa(6))]
    two.fails = "some"
    line = "2 peers sent to 192.0.2.9 (gw 1, road 1), 4 cannot be\n"
    assert ctl("redirect", "gw", "road", "--to", "192.0.2.9").out == line
    document = ctl("redirect", "gw", "road", "--to", "192.0.2.9", "--json").document
    assert (document["matches"], document["unsupported"]) == (2, 4)
    assert document["results"][0] == {"name": "gw", "matches": 1, "unsupported": 2}
    two.fails = "always"
    done = ctl("redirect", "gw", "--to", "192.0.2.9")
    assert done.status == ExitCode.FAILED
    assert "1 peer cannot be redirected" in done.err
    assert "RFC 5685" in done.err
    assert ctl("redirect", "gw", "--to", "192.0.2.9", "--json").document["error"] == "failed"


def test_daemon_that_dies_meanwhile(two: FakeDaemon, ctl: Ctl) -> None:
    two.fails = "never"

    def die() -> None:
        assert two.begun.wait(10)
        two.loop.call_soon_threadsafe(two.hang_up)

    thread = threading.Thread(target=die)
    thread.start()
    done = ctl("up", "gw/net")
    thread.join()
    assert done.status == ExitCode.UNREACHABLE
    assert "hung up" in done.err


def test_every_cause_has_advice() -> None:
    assert set(ADVICE) == {cause.value for cause in Cause}


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("received NO_PROPOSAL_CHOSEN notify, no CHILD_SA built", "proposal-mismatch-child"),
        ("received NO_PROPOSAL_CHOSEN notify error", "proposal-mismatch-ike"),
        ("received TS_UNACCEPTABLE notify, no CHILD_SA built", "ts-mismatch"),
        ("received AUTHENTICATION_FAILED notify error", "local-auth-failed"),
        ("no shared key found for 'a' - 'b'", "local-auth-failed"),
        ("no trusted RSA public key found for 'b'", "certificate"),
        ("tried 1 shared key for 'a' - 'b', but MAC mismatched", "peer-auth-failed"),
        ("giving up after 5 retransmits", "no-answer"),
        ("unable to resolve gw.example, initiate aborted", "no-path"),
        ("all is well", ""),
    ],
)
def test_what_charon_logs(line: str, cause: str) -> None:
    assert cause_in_log(["something before", line, "and after"])[0] == cause


def test_install_and_uninstall(two: FakeDaemon, ctl: Ctl) -> None:
    done = ctl("install", "gw/voice")
    assert (done.status, done.out) == (0, "gw/voice is in place\n")
    assert asked(two, "install") == [{"ike": "gw", "child": "voice"}]
    # a connection is all its children; what is there is left alone
    results = ctl("install", "gw", "--json").document["results"]
    assert [(one["name"], one["result"]) for one in results] == [
        ("gw/net", "installed"),
        ("gw/voice", "was-installed"),
    ]
    assert set(two.policies) == {"gw/net", "gw/voice"}
    assert ctl("uninstall", "gw/net", "branch/net").out == "gw/net is taken away\nbranch/net is not in place\n"
    assert set(two.policies) == {"gw/voice"}
    (result,) = ctl("uninstall", "voice", "--json").document["results"]
    assert result == {"name": "gw/voice", "result": "uninstalled", "reason": ""}
    assert asked(two, "uninstall") == [{"ike": "gw", "child": "net"}, {"ike": "gw", "child": "voice"}]


def test_install_that_fails(two: FakeDaemon, ctl: Ctl) -> None:
    two.refuses = {"gw/net"}
    done = ctl("install", "gw")
    assert done.status == ExitCode.FAILED
    assert done.out == "gw/net failed: installing policy 'net' failed\ngw/voice is in place\n"
    assert ctl("install").status == ExitCode.USAGE
    assert ctl("install", "voyce").status == ExitCode.UNKNOWN_NAME
    two.sas = [("gw", ike_sa(5, [child_sa("old", 6)]))]
    assert ctl("uninstall", "gw[5]").status == ExitCode.USAGE
    assert ctl("uninstall", "gw/old").status == ExitCode.UNKNOWN_NAME
    assert not asked(two, "uninstall")


def test_flush(two: FakeDaemon, ctl: Ctl) -> None:
    done = ctl("flush")
    assert (done.status, done.err) == (0, "")
    assert "are forgotten" in done.out
    assert ctl("flush", "--json").document["kind"] == "flush"
    assert asked(two, "flush-certs") == [{}, {}]
