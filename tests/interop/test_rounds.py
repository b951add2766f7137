"""Several rounds of authentication (RFC 4739) with strongSwan: end a proves more than once who it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop.cases import Case, Values, gw, make_sides, merge
from tests.interop.certificates import name_of
from tests.interop.charon import PLUGINS, CharonGateway
from tests.interop.gateway import Gateway, Side
from tests.interop.ipsecd import IpsecdGateway
from tests.interop.lab import Lab
from tests.interop.recordings import Recordings
from tests.interop.steps import (
    INITIATOR,
    RESPONDER,
    Count,
    Delete,
    Initiate,
    Log,
    NoTraffic,
    OnWire,
    Postquantum,
    Rekey,
    Run,
    Step,
    Traffic,
)
from tests.interop.test_matrix import play

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

#: what the default runs have, each in one role
QUICK = {("psk, eap", "charon-ipsecd"), ("certificate, eap", "ipsecd-charon"), ("eap, certificate", "charon-ipsecd")}
PEERS = ("ipsecd-charon", "charon-ipsecd")
_EAP = "eap-identity eap-mschapv2 eap-tls"

USER, OTHER = "carol", "other.interop.test"
SECRETS: Values = {
    "secrets": {
        "ike-1": {"id-1": name_of(0), "id-2": name_of(1), "secret": "of no worth outside"},
        "ike-2": {"id-1": OTHER, "id-2": name_of(1), "secret": "of no more worth"},
        f"eap-{USER}": {"id": USER, "secret": "of some worth"},
    }
}
PPK: Values = {"secrets": {"ppk-1": {"id-1": "pq.interop.test", "secret": "0x" + "a5" * 32}}}

#: what a shows, and what b wants to see
ROUNDS: dict[str, tuple[Values, Values]] = {
    "psk": ({"auth": "psk", "id": name_of(0)}, {"auth": "psk", "id": name_of(0)}),
    "other psk": ({"auth": "psk", "id": OTHER}, {"auth": "psk", "id": OTHER}),
    "certificate": (
        {"auth": "pubkey", "id": name_of(0), "certs": "a-ecdsa256.pem"},
        {"auth": "pubkey", "id": name_of(0), "cacerts": "root.pem"},
    ),
    "tls": (
        {"auth": "eap-tls", "id": name_of(0), "certs": "a-ecdsa256.pem"},
        {"auth": "eap-tls", "id": name_of(0)},
    ),
    "eap": (
        {"auth": "eap-mschapv2", "id": name_of(0), "eap_id": USER},
        {"auth": "eap-mschapv2", "id": name_of(0), "eap_id": "%any"},
    ),
}
UP: tuple[Step, ...] = (Initiate(), Traffic(), Count(1, 1))
REFUSED: tuple[Step, ...] = (Initiate(up=False), NoTraffic(), Count(0, 0))


class Charon(CharonGateway):
    """With EAP."""

    plugins = " ".join([PLUGINS, *(name for name in _EAP.split() if name not in PLUGINS.split())])


KINDS: dict[str, type[Gateway]] = {"charon": Charon, "ipsecd": IpsecdGateway}


def sections(side: str, rounds: tuple[str, ...]) -> Values:
    """``local`` and ``local-2``, or the same of remote."""
    which = 0 if side == "local" else 1
    return {f"{side}-{place}": ROUNDS[name][which] for place, name in enumerate(rounds, 1)}


def make(
    mine: tuple[str, ...],
    theirs: tuple[str, ...] | None = None,
    *,
    gateway: str = "ecdsa256",
    initiator: Values | None = None,
    responder: Values | None = None,
    **more: Any,
) -> tuple[Side, Side]:
    """Two mirrored configurations, as ``make_sides`` has them; ``gateway`` is b's certificate, empty for a key."""
    begins = {"local": None, **sections("local", mine)}
    answers = {"remote": None, **sections("remote", mine if theirs is None else theirs)}
    files = ("x509/a-ecdsa256.pem", "private/a-ecdsa256.pem", "x509ca/root.pem")
    return make_sides(
        certs=("", gateway),
        initiator=merge(merge(SECRETS, gw(begins)), initiator or {}),
        responder=merge(merge(SECRETS, gw(answers)), responder or {}),
        files=(files, files[2:]),
        **more,
    )


def cases() -> Iterator[Case]:
    two = [("psk", "eap"), ("certificate", "eap"), ("eap", "certificate"), ("eap", "psk"), ("certificate", "psk")]
    more = [("psk", "other psk"), ("psk", "certificate"), ("psk", "certificate", "eap"), ("psk", "tls"), ("tls", "eap")]
    for rounds in (*two, *more):
        yield Case(", ".join(rounds), make(rounds), UP)
    yield Case("psk, eap, key of the gateway", make(("psk", "eap"), gateway=""), UP)
    by_tls = {"initiator": gw({"remote": {"auth": "eap-tls"}}), "responder": gw({"local": {"auth": "eap-tls"}})}
    for rounds in (("tls", "psk"), ("tls", "eap")):
        yield Case(f"{', '.join(rounds)}, EAP alone", make(rounds, **by_tls), UP)
    backwards = gw({"local-1": {"round": "2"}, "local-2": {"round": "1"}})
    yield Case("by round", make(("eap", "psk"), ("psk", "eap"), initiator=backwards), UP)

    wrong = {"secrets": {f"eap-{USER}": {"secret": "another one"}, "ike-2": {"secret": "another one"}}}
    refused = (*REFUSED, Log(r"AUTH_FAILED|AUTHENTICATION_FAILED|EAP-Failure|EAP_FAILURE", INITIATOR))
    for rounds in (("psk", "eap"), ("eap", "psk"), ("psk", "other psk")):
        name = ", ".join(rounds)
        yield Case(f"{name}, wrong secret", make(rounds, initiator=wrong), refused)
        yield Case(f"{name}, only the first", make(rounds[:1], rounds), REFUSED)
        # charon shows the first then, and is let in
        yield Case(f"{name}, of one that wants the first", make(rounds, rounds[:1]), REFUSED, not_charon=("initiator",))
    yield Case("psk, eap, the other way round", make(("psk", "eap"), ("eap", "psk")), REFUSED)

    must = merge(PPK, gw({"ppk_id": "pq.interop.test", "ppk_required": "yes"}))
    for rounds in two:
        sides = make(rounds, initiator=must, responder=must)
        yield Case(f"{', '.join(rounds)}, ppk", sides, (*UP, Postquantum()))
    wish = merge(PPK, gw({"ppk_id": "pq.interop.test"}))
    other = {"secrets": {"ppk-2": {"id-1": "other.interop.test", "secret": "0x" + "5a" * 32}}}
    sides = make(("psk", "eap"), initiator=wish, responder=other)
    yield Case("psk, eap, ppk the peer has not", sides, (*UP, Postquantum(False)))

    steps = (*UP, Rekey("ike"), Rekey("child"), Rekey("ike", RESPONDER), Traffic(), Count(1, 1))
    yield Case("rekeyed", make(("psk", "eap")), (*steps, Delete("ike", RESPONDER)))
    anew = (*UP, Rekey("reauth"), Traffic(), Count(1, 1))
    yield Case("reauthenticate", make(("psk", "eap")), anew)
    sides = make(("certificate", "eap"), settings={"fragment_size": "576"})
    yield Case("fragments", sides, (*UP, OnWire("response fragments")))

    # the responder could show itself twice; charon then says after the second AUTH as well that another follows
    both = {"local": None, "local-1": {"auth": "pubkey", "id": name_of(1), "certs": "b-ecdsa256.pem"}}
    both["local-2"] = {"auth": "psk", "id": name_of(1)}
    sides = make(("psk",), responder=gw(both))
    yield Case("psk, of one that can show more", sides, UP, not_charon=("initiator",))
    sides = make(("psk", "other psk"), responder=gw(both))
    steps = (*REFUSED, Log("the peer goes on proving who it is", INITIATOR))
    yield Case("psk, other psk, of one that can show more", sides, steps, not_charon=("initiator",))


PARAMETERS = [
    pytest.param(case, peers, id=f"{peers}-{case.name.replace(', ', '_').replace(' ', '_')}",
                 marks=() if (case.name, peers) in QUICK else pytest.mark.slow)
    for case in cases()
    for peers in PEERS
    if not (case.not_charon and peers.startswith("charon"))
]  # fmt: skip


def run_case(lab: Lab, credentials: Path, recordings: Recordings, folder: Path, case: Case, kinds: list[str]) -> None:
    lab.reset()
    lab.recorder.clear()
    first, second = (
        KINDS[kind](lab.ends[index], index, folder / "ab"[index], case.sides[index], credentials)
        for index, kind in enumerate(kinds)
    )
    try:
        play(Run(lab, (first, second), folder), case, lab, folder)
    finally:
        pcap = folder / "wire.pcap"
        lab.recorder.save(pcap)
        recordings.add(f"rounds: {case.name} ({'-'.join(kinds)})", pcap)


@pytest.mark.parametrize(("case", "peers"), PARAMETERS)
def test_rounds(
    lab: Lab, credentials: Path, recordings: Recordings, tmp_path: Path, case: Case, peers: str
) -> None:
    run_case(lab, credentials, recordings, tmp_path, case, peers.split("-"))


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("ipsecd", "charon"), ("charon", "ipsecd")])
def test_a_responder_that_is_to_show_itself_twice(
    lab: Lab, credentials: Path, recordings: Recordings, tmp_path: Path, kinds: tuple[str, str]
) -> None:
    """That is not done, and whoever asks for it does not get less: nothing comes up."""
    proofs = {"certificate": "b-ecdsa256.pem", "psk": None}
    local: Values = {"local": None}
    remote: Values = {"remote": None}
    for place, (name, file) in enumerate(proofs.items(), 1):
        auth = {"auth": "psk" if name == "psk" else "pubkey", "id": name_of(1)}
        local[f"local-{place}"] = auth | ({"certs": file} if file else {})
        remote[f"remote-{place}"] = auth
    sides = make_sides(
        certs=("", "ecdsa256"),
        initiator=merge(SECRETS, gw(remote)),
        responder=merge(SECRETS, gw(local)),
    )
    words = "2 rounds of remote.auth are for a peer that begins" if kinds[0] == "ipsecd" else "we show the first of 2"
    case = Case("twice the responder", sides, (*REFUSED, Log(words, kinds.index("ipsecd"))))
    run_case(lab, credentials, recordings, tmp_path, case, list(kinds))
