"""Both ends begin at once, and the peer is charon."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from pyroute2.nftables.expressions import genex, verdict
from pyroute2.nftables.main import NFTables

from tests.interop.cases import QUICK, gw, make_sides
from tests.interop.charon import CharonGateway
from tests.interop.charon import swanctl as ask
from tests.interop.gateway import Side
from tests.interop.ipsecd import IpsecdGateway
from tests.interop.lab import INNER, Lab, Namespace, eventually
from tests.interop.wire import CREATE_CHILD_SA, IKE_AUTH
from tools import strongswan

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

#: where the exchange type of IKE is, behind the UDP header and the non-ESP marker; its flags follow
EXCHANGE_AT = 8 + 4 + 18
INITIATOR_ASKS, INITIATOR_ANSWERS, ASKS = 0x08, 0x28, 0x00
IKE_FOLLOWUP_KE = 44
TRANSPORT_HEADER = 2
NF_DROP = 0


@contextmanager
def without(end: Namespace, exchange: int, flags: int) -> Iterator[None]:
    """What the initiator of an IKE_SA in here says in such an exchange gets lost: what it asks, or what it answers."""
    name = f"loss{exchange}x{flags}"

    def change(command: str) -> None:
        with NFTables(nfgen_family=socket.AF_INET) as tables:
            tables.table(command, name=name)
            if command == "add":
                tables.chain("add", table=name, name="out", hook="output", type="filter", policy=1)
                tables.rule("add", table=name, chain="out", expressions=rule)

    load = genex("payload", {"dreg": 1, "base": TRANSPORT_HEADER, "offset": EXCHANGE_AT, "len": 2})
    wanted = {"attrs": [("NFTA_DATA_VALUE", bytes((exchange, flags)))]}
    rule = ([load], [genex("cmp", {"sreg": 1, "op": 0, "data": wanted})], verdict(NF_DROP))
    end.inside(lambda: change("add"))
    try:
        yield
    finally:
        end.inside(lambda: change("del"))


def swanctl(end: IpsecdGateway, *args: str) -> str:
    """Stock swanctl on ipsecd."""
    return ask(f"{end.home}/ipsecd.vici", *args)


def test_what_charon_drops_at_our_initial_contact(lab: Lab, credentials: Path, tmp_path: Path) -> None:
    """Its own IKE_SA, which has come up while our IKE_AUTH was on its way. Not a packet is sent into that."""
    lab.reset(one_address=True)
    ours, theirs = make_sides(both=gw({"mobike": "no", "unique": "no"}))
    quick = {**QUICK, "retransmit_tries": "12", "vici_socket": f"unix://{tmp_path}/a/ipsecd.vici"}
    a = IpsecdGateway(lab.a, 0, tmp_path / "a", Side(ours.swanctl, quick), credentials)
    b = CharonGateway(lab.b, 1, tmp_path / "b", theirs, credentials)
    try:
        b.start()
        a.start()
        with without(lab.a, IKE_AUTH, INITIATOR_ASKS):
            swanctl(a, "--initiate", "--child", "net", "--timeout", "-1")
            eventually(lambda: "takes IKE" in a.log(), "IKE_AUTH is about to be sent")
            assert b.initiate()
            eventually(lambda: lab.a.ping(*INNER[4]), "ping through charon's IKE_SA")
        eventually(lambda: a.log().count("established between") == 2, "our IKE_SA is up")
        assert lab.a.ping(*INNER[4], count=20)
        assert lab.b.ping(*reversed(INNER[4]), count=20)
        assert len([sa for sa in b.sas() if sa["state"] == "ESTABLISHED"]) == 1
        eventually(lambda: swanctl(a, "--list-sas").count("ESTABLISHED") == 1, "what charon does not have is gone here")
        assert lab.a.ping(*INNER[4])
    except BaseException as error:
        error.add_note(f"--- ipsecd\n{a.log()[-4000:]}\n--- charon\n{b.log()[-3000:]}")
        raise
    finally:
        a.kill()
        b.kill()


def spis(b: CharonGateway) -> list[tuple[str, str]]:
    """State and SPI of charon's CHILD_SAs."""
    return [(child["state"], child["spi-in"]) for sa in b.sas() for child in sa["child-sas"].values()]


@pytest.mark.slow
def test_our_answer_is_lost_when_both_rekey_a_child_sa(lab: Lab, credentials: Path, tmp_path: Path) -> None:
    """charon's successor stays, and it does not refuse to have the IKE_SA rekeyed before it has our answer, for which
    it would ask in the old one alone: neither end would have anything in place of the CHILD_SA."""
    lab.reset(one_address=True)
    ours, theirs = make_sides(both=gw({"mobike": "no"}))
    settings = {"retransmit_timeout": "0.3", "retransmit_tries": "12", "vici_socket": f"unix://{tmp_path}/a/ipsecd.vici"}
    a = IpsecdGateway(lab.a, 0, tmp_path / "a", Side(ours.swanctl, settings), credentials)
    b = CharonGateway(lab.b, 1, tmp_path / "b", theirs, credentials)
    lost = "rekeyed by both ends at once, the peer's successor stays"
    try:
        b.start()
        a.start()
        assert a.initiate()
        # whose nonce is the lowest is left to chance
        for _ in range(16):
            before, ups = spis(b), a.log().count("CHILD_SA net")
            with without(lab.a, CREATE_CHILD_SA, INITIATOR_ANSWERS):
                with without(lab.a, CREATE_CHILD_SA, INITIATOR_ASKS):
                    swanctl(a, "--rekey", "--child", "net")
                    b.rekey("child")
                    time.sleep(0.1)
                eventually(lambda ups=ups: a.log().count("CHILD_SA net") > ups or lost in a.log(), "an answer")
                if lost in a.log():
                    time.sleep(0.1)
                    swanctl(a, "--rekey", "--ike", "gw")
                    time.sleep(0.2)
            eventually(lambda: [state for state, _ in spis(b)] == ["INSTALLED"], "one is left", timeout=15)
            assert spis(b) != before
            assert lab.a.ping(*INNER[4])
            if lost in a.log():
                break
        else:
            pytest.fail("ours had the lowest nonce sixteen times")
        eventually(lambda: "takes over" in a.log(), "the IKE_SA is rekeyed later", timeout=15)
        assert lab.b.ping(*reversed(INNER[4]))
    except BaseException as error:
        error.add_note(f"--- ipsecd\n{a.log()[-4000:]}\n--- charon\n{b.log()[-3000:]}")
        raise
    finally:
        a.kill()
        b.kill()


@pytest.mark.slow
@pytest.mark.skipif(strongswan.version() < (6, 0, 2), reason="this strongSwan does one key exchange for an SA")
@pytest.mark.parametrize("what", ["child", "ike"])
def test_both_rekey_with_several_key_exchanges(lab: Lab, credentials: Path, tmp_path: Path, what: str) -> None:
    """The nonces of CREATE_CHILD_SA decide who goes on with IKE_FOLLOWUP_KE (RFC 9370 section 2.2.4)."""
    lab.reset(one_address=True)
    ike, esp = "aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke2_ecp384", "aes256gcm16-x25519-ke1_mlkem768-ke2_ecp384"
    ours, theirs = make_sides(ike=ike, esp=esp, both=gw({"mobike": "no"}))
    quick = {"retransmit_timeout": "0.3", "retransmit_base": "1", "retransmit_tries": "30"}
    settings = {**quick, "vici_socket": f"unix://{tmp_path}/a/ipsecd.vici"}
    a = IpsecdGateway(lab.a, 0, tmp_path / "a", Side(ours.swanctl, settings), credentials)
    b = CharonGateway(lab.b, 1, tmp_path / "b", Side(theirs.swanctl, quick), credentials)
    name = ("--child", "net") if what == "child" else ("--ike", "gw")
    try:
        b.start()
        a.start()
        assert a.initiate()
        for _ in range(6):
            before = spis(b), {sa["initiator-spi"] for sa in b.sas()}
            began = b.sas()[0].get("initiator") == "yes"
            asks = (ASKS, INITIATOR_ASKS) if began else (INITIATOR_ASKS, ASKS)
            with ExitStack() as later, ExitStack() as first:
                for end, flags in zip(lab.ends, asks, strict=True):
                    later.enter_context(without(end, IKE_FOLLOWUP_KE, flags))
                    first.enter_context(without(end, CREATE_CHILD_SA, flags))
                swanctl(a, "--rekey", *name)
                b.rekey(what)
                time.sleep(0.1)
                # both have asked; now both are answered, and neither can go on yet
                first.close()
                time.sleep(0.8)

            def is_settled(before: object = before) -> bool:
                now = spis(b), {sa["initiator-spi"] for sa in b.sas()}
                alone = [sa["state"] for sa in b.sas()] == ["ESTABLISHED"]
                return alone and [state for state, _ in now[0]] == ["INSTALLED"] and now != before

            eventually(is_settled, "one is left", timeout=20)
            assert lab.a.ping(*INNER[4])
            assert lab.b.ping(*reversed(INNER[4]))
        assert swanctl(a, "--list-sas").count("ESTABLISHED") == 1
        assert swanctl(a, "--list-sas").count("INSTALLED") == 1
        assert "at once" in a.log() or "collision" in b.log()
    except BaseException as error:
        error.add_note(f"--- ipsecd\n{a.log()[-4000:]}\n--- charon\n{b.log()[-6000:]}")
        raise
    finally:
        a.kill()
        b.kill()
