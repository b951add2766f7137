"""RFC 5685 with strongSwan at either end: a gateway sends its peers to another one, which they reach, with traffic.

a, the peer === wire0 === b, the gateway that redirects
            === nat0 ==== n, the other gateway, which has the same network behind it
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.cases import gw, make_sides
from tests.interop.charon import CharonGateway, swanctl
from tests.interop.gateway import Gateway, Side
from tests.interop.ipsecd import IpsecdGateway
from tests.interop.lab import INNER, NEAR, OUTER, Lab, eventually

pytestmark = [pytest.mark.interop, pytest.mark.e2e]

KINDS: dict[str, type[Gateway]] = {"charon": CharonGateway, "ipsecd": IpsecdGateway}
#: whose commands are vici's
SOCKETS = {"charon": "charon.vici", "ipsecd": "ipsecd.vici"}


class Redirection:
    """The three of them. The peer is connected to nobody yet."""

    def __init__(self, lab: Lab, folder: Path, credentials: Path, kinds: dict[str, str], **settings: str) -> None:
        at_home = {"local_addrs": "%any", "mobike": "no"}
        peer, gateway = make_sides(initiator=gw(at_home), responder=gw({"mobike": "no"}), settings=({}, settings))
        other = make_sides(responder=gw({**at_home, "remote_addrs": "%any"}))[1]
        self.lab = lab
        self.peer = self._make(kinds["peer"], lab.a, 0, folder / "a", peer, credentials)
        self.gateway = self._make(kinds["gateway"], lab.b, 1, folder / "b", gateway, credentials)
        self.other = self._make(kinds["other"], lab.n, 1, folder / "n", other, credentials)

    @staticmethod
    def _make(kind: str, where: object, index: int, home: Path, side: Side, credentials: Path) -> Gateway:
        if kind == "ipsecd":
            side = Side(side.swanctl, {**side.settings, "vici_socket": f"unix://{home}/ipsecd.vici"}, side.files)
        return KINDS[kind](where, index, home, side, credentials)  # type: ignore[arg-type]

    @property
    def ends(self) -> tuple[Gateway, ...]:
        return self.other, self.gateway, self.peer

    def swanctl(self, end: Gateway, *args: str) -> str:
        """Stock swanctl on whichever daemon it is."""
        return swanctl(f"{end.home}/{SOCKETS[end.kind]}", *args)

    def arrives(self) -> None:
        """The peer has an IKE_SA with the other gateway, none with this one, and traffic."""

        def there() -> bool:
            sas = self.swanctl(self.peer, "--list-sas")
            return f"@ {NEAR}" in sas and "INSTALLED" in sas and f"@ {OUTER[4][1]}" not in sas

        eventually(there, "the peer is where it was sent to")
        eventually(lambda: self.lab.a.ping(*INNER[4]), "ping through the other gateway")
        eventually(lambda: "INSTALLED" not in self.swanctl(self.gateway, "--list-sas"), "nothing is left at the first")
        assert "INSTALLED" in self.swanctl(self.other, "--list-sas")


@pytest.fixture
def folder(lab: Lab, tmp_path: Path) -> Iterator[Path]:
    """The wires, and the inner address of the other gateway."""
    lab.reset()
    lab.n.ip("addr", "add", f"{INNER[4][1]}/32", "dev", "lo")
    yield tmp_path
    lab.n.ip("addr", "del", f"{INNER[4][1]}/32", "dev", "lo")


def start(stack: ExitStack, made: Redirection) -> Redirection:
    for end in made.ends:
        stack.callback(end.kill)
        end.start()
    return made


def logs(made: Redirection) -> str:
    return "\n".join(f"--- {end.kind} {end.home.name}\n{end.log()[-3000:]}" for end in made.ends)


@pytest.mark.parametrize(("peer", "other"), [("charon", "ipsecd"), ("charon", "charon"), ("ipsecd", "charon")])
def test_before_it_begins(lab: Lab, folder: Path, credentials: Path, peer: str, other: str) -> None:
    """``redirect_to``: REDIRECT in the answer to IKE_SA_INIT (section 3). charon has no setting for that."""
    kinds = {"peer": peer, "gateway": "ipsecd", "other": other}
    with ExitStack() as stack:
        made = start(stack, Redirection(lab, folder, credentials, kinds, redirect_to=NEAR))
        made.peer.initiate()
        try:
            made.arrives()
        except AssertionError as error:
            error.add_note(logs(made))
            raise
        assert "established between" not in made.gateway.log()


@pytest.mark.parametrize(("peer", "gateway"), [("ipsecd", "charon"), ("charon", "ipsecd"), ("ipsecd", "ipsecd")])
def test_while_it_is_up(lab: Lab, folder: Path, credentials: Path, peer: str, gateway: str) -> None:
    """``swanctl --redirect``: REDIRECT in an INFORMATIONAL request (section 5)."""
    kinds = {"peer": peer, "gateway": gateway, "other": "charon" if gateway == "ipsecd" else "ipsecd"}
    with ExitStack() as stack:
        made = start(stack, Redirection(lab, folder, credentials, kinds))
        assert made.peer.initiate(), logs(made)
        said = made.swanctl(made.gateway, "--redirect", "--ike", "gw", "--gateway", NEAR)
        assert "redirect completed successfully" in said, said
        try:
            made.arrives()
        except AssertionError as error:
            error.add_note(logs(made))
            raise
