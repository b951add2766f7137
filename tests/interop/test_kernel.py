"""ipsecd and the ESP of the Linux kernel, which charon drives as it does nearly everywhere: cases of the matrix.

    make kernel-peer

Needs Debian's user-mode-linux; no KVM, and nothing of this machine's kernel but tap devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.cases import CASES
from tests.interop.gateway import Gateway
from tests.interop.guest import LINUX
from tests.interop.ipsecd import IpsecdGateway
from tests.interop.kernel import KernelCharonGateway, KernelLab
from tests.interop.steps import Run
from tests.interop.test_matrix import play

pytestmark = [
    pytest.mark.interop,
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(LINUX is None, reason="no other kernel to run: apt-get install user-mode-linux"),
]

NAMES = (
    *("psk", "defaults", "no mobike", "invalid ke", "certificates rsa", "certificates ecdsa256", "fragments"),
    *("esp aes256gcm16", "esp aes256ccm16", "esp chacha20poly1305", "esp aes256-sha256", "esp aes128ctr-sha256"),
    *("esp aes128-aesxcbc", "rekey child by initiator", "rekey child with pfs by responder", "rekey ike by initiator"),
    *("rekey ike by responder", "IPv6 in IPv6", "IPv4 in IPv6", "IPv6 in IPv4", "both families in one child"),
    *("childless", "childless refused", "pfs is not for the first child", "sha256 of 96 bits"),
    *("trap", "reauthenticate", "reauthenticate, make before break"),
)
#: what needs b to be the guest: traffic when there is no tunnel, addresses that come and go at a, a NAT in front of a
AS_RESPONDER = (
    *("nat", "nat, rekey child by responder", "mobike", "virtual IPv4", "two children", "wrong psk"),
    *("sha256 of 96 bits at one end", "sha256 of 96 bits in one of two children"),
)
ALL = {case.name: case for case in CASES}


@pytest.fixture(scope="module", params=[0, 1], ids=["charon-ipsecd", "ipsecd-charon"])
def kernel_lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelLab]:
    """The guest is the initiator, then the responder."""
    with KernelLab(request.param, tmp_path_factory.getbasetemp()) as lab:
        yield lab


@pytest.mark.parametrize("name", [*NAMES, *AS_RESPONDER])
def test_case(kernel_lab: KernelLab, credentials: Path, tmp_path: Path, name: str) -> None:
    side = kernel_lab.side
    if name in AS_RESPONDER and side == 0:
        pytest.skip("needs the guest to be the responder")
    case = ALL[name]
    kernel_lab.reset(one_address=case.one_address)
    kernel_lab.recorder.clear()
    guest = KernelCharonGateway(kernel_lab, tmp_path / "guest", case.sides[side], credentials)
    ours = IpsecdGateway(kernel_lab.ours, 1 - side, tmp_path / "ours", case.sides[1 - side], credentials)
    ends: tuple[Gateway, Gateway] = (ours, guest) if side else (guest, ours)
    play(Run(kernel_lab, ends, tmp_path), case, kernel_lab, tmp_path)
