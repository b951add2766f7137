"""What is kept of fetched CRLs, by their scope and date."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509 as cx

from ipsec.config import load_text
from ipsec.crypto.auth import parse_constraints
from ipsec.crypto.revocation import Crl, OcspResponse, Status, revocation_sources, status_of
from ipsec.crypto.x509 import Certificate
from ipsec.daemon.loaded import Loaded
from ipsec.ike.status import StatusCache
from tests.crypto.pki import DAY, EC_KEY, WALL, Ca
from tests.crypto.test_revocation import GOOD, REVOKED, chain_of, idp, point, respond, signed_with_sha1

HOUR = timedelta(hours=1)


def known(cache: StatusCache | Loaded, ca: Ca, end: Certificate) -> Status:
    crls = cache.crls if isinstance(cache, StatusCache) else cache.config().credentials.crls
    return status_of(revocation_sources(chain_of(ca, end))[0], crls, (), WALL)[0]


def filled(ca: Ca, end: Certificate, *crls: bytes) -> list[StatusCache | Loaded]:
    """A cache that was given these one after the other, and what is loaded after the same."""
    cache, loaded = StatusCache(), Loaded(load_text(""))
    for crl in crls:
        cache.add(revocation_sources(chain_of(ca, end)), [Crl(crl)], (), WALL)
        loaded.load_crl(crl)
    return [cache, loaded]


@pytest.mark.parametrize(
    "late",
    [
        {"this": WALL - DAY - HOUR},
        {"extensions": [(cx.DeltaCRLIndicator(1), True)]},
        {"extensions": idp(only_contains_ca_certs=True)},
    ],
    ids=["older", "delta", "for-others"],
)
def test_a_list_does_not_take_back_what_another_says(late: dict[str, Any]) -> None:
    """One that is older, as whoever is on the way to the server may send again, or about something else."""
    ca = Ca()
    end = ca.issue(serial=6)
    for where in filled(ca, end, ca.crl(6), ca.crl(**late)):
        assert known(where, ca, end) is Status.REVOKED


def test_a_newer_list_is_in_force() -> None:
    ca = Ca()
    end = ca.issue(serial=6)
    for where in filled(ca, end, ca.crl(6), ca.crl(this=WALL - HOUR)):
        assert known(where, ca, end) is Status.GOOD


def test_a_forged_list_drives_nothing_out() -> None:
    ca = Ca()
    end = ca.issue(serial=6)
    cache = filled(ca, end, ca.crl(6), ca.crl(this=WALL - HOUR, key=EC_KEY))[0]
    assert known(cache, ca, end) is Status.REVOKED


def test_a_list_with_a_weak_signature_drives_nothing_out() -> None:
    """It would take a collision to make one, and with it one could hide what is revoked."""
    ca = Ca()
    end = ca.issue(serial=6)
    late = signed_with_sha1(ca, ca.crl(this=WALL - HOUR)).der
    for where in filled(ca, end, ca.crl(6), late):
        assert known(where, ca, end) is Status.REVOKED


def test_an_authority_with_several_lists() -> None:
    """RFC 5280 section 5.2.5: each is about the certificates that name its distribution point."""
    ca = Ca()
    uris = ("http://a/1.crl", "http://a/2.crl")
    ends = [ca.issue(serial=n, extensions=[(cx.CRLDistributionPoints([point(uri)]), False)])
            for n, uri in enumerate(uris, 6)]  # fmt: skip
    lists = [ca.crl(extensions=idp(full_name=[cx.UniformResourceIdentifier(uri)])) for uri in uris]
    for where in filled(ca, ends[0], *lists):
        assert [known(where, ca, end) for end in ends] == [Status.GOOD, Status.GOOD]


def test_when_to_ask_again() -> None:
    """When what came of the last question has run out; if nothing did, or it is in force for longer, minutes later."""
    ca = Ca()
    end = ca.issue(serial=6, extensions=[(cx.CRLDistributionPoints([point("http://a/1.crl")]), False)])
    minute = timedelta(minutes=1)
    (source,) = revocation_sources(chain_of(ca, end))
    for due, again in ((None, 5 * minute), (minute, minute), (HOUR, 5 * minute), (minute / 60, minute / 6)):
        for status in (GOOD, REVOKED):
            cache = StatusCache()
            assert cache.worth_asking(source, WALL)
            came = [] if due is None else [OcspResponse(respond(ca, end, status, due=WALL + due))]
            cache.add([source], (), came, WALL)
            assert not cache.worth_asking(source, WALL)
            assert not cache.worth_asking(source, WALL + again)
            assert cache.worth_asking(source, WALL + again + minute / 60)
            # the clock was put back
            assert not cache.worth_asking(source, WALL - minute)
            assert cache.worth_asking(source, WALL - HOUR)


def test_what_is_good_enough_for_one_connection_is_asked_for_by_another() -> None:
    ca = Ca()
    end = ca.issue(serial=6, extensions=[(cx.CRLDistributionPoints([point("http://a/1.crl")]), False)])
    (any_way,), (only_rsa,) = (
        revocation_sources(chain_of(ca, end), constraints=parse_constraints(text)) for text in ("pubkey", "rsa")
    )
    cache = StatusCache()
    cache.add([any_way], [Crl(ca.crl())], (), WALL)
    assert not cache.worth_asking(any_way, WALL)
    assert cache.worth_asking(only_rsa, WALL)


def test_responses_of_strangers_are_not_kept() -> None:
    ca, other = Ca(), Ca("Other")
    end = ca.issue()
    cache = StatusCache()
    came = [OcspResponse(respond(one, end)) for one in (other, ca)]
    cache.add(revocation_sources(chain_of(ca, end)), (), came, WALL)
    assert list(cache.responses) == came[1:]
