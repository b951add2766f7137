"""The matrix: what two ends are configured with, and what has to come of it. Data only.

End a is the initiator, end b the responder. Either may be charon or ipsecd; a case that one of them cannot take part in
says so in ``not_charon``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.interop.certificates import name_of, subject_of
from tests.interop.gateway import Side
from tests.interop.lab import INNER, NAT_OUTSIDE, NATTED, NETS, OTHER, OUTER
from tests.interop.steps import (
    INITIATOR,
    RESPONDER,
    Count,
    CutWire,
    Delete,
    HalfOpen,
    Initiate,
    Kill,
    Log,
    Move,
    NoTraffic,
    OnWire,
    Postquantum,
    Reconfigure,
    Rekey,
    Restart,
    Selectors,
    Silence,
    Step,
    Suite,
    Traffic,
    VirtualTraffic,
    Wait,
)

Values = dict[str, Any]

IKE = "aes128gcm16-prfsha256-x25519"
ESP = "aes128gcm16"
#: quick to give up, so that a dead peer is known to be dead within two seconds
QUICK = {"retransmit_timeout": "0.3", "retransmit_base": "1", "retransmit_tries": "2"}
FAILED = r"AUTH_FAILED|AUTHENTICATION_FAILED"
NO_PROPOSAL = r"NO_PROP|NO_PROPOSAL_CHOSEN"


@dataclass(frozen=True)
class Case:
    """One entry of the matrix."""

    name: str
    sides: tuple[Side, Side]
    steps: tuple[Step, ...]
    not_charon: tuple[str, ...] = ()
    "roles that charon 5.9.8 with kernel-libipsec cannot play: initiator, responder"
    charon: Values = field(default_factory=dict)
    "what charon has besides, and ipsecd may not know"
    since: tuple[int, ...] = ()
    "the first strongSwan that has that"
    one_address: bool = False
    "both ends have nothing but their IPv4 address on the wire, so that there is one path to choose"
    two_wires: bool = False
    "there are two wires between the ends, and nothing else"
    slow: bool = False
    "left to the slow runs, in whichever roles"


def merge(base: Values, changes: Values) -> Values:
    """``base`` with ``changes`` put over it, section by section; None takes a key away."""
    result = dict(base)
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = value
    return result


def credential_files(side: int, kind: str, *, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The files an end needs to show a certificate of this kind and to check one that the root issued."""
    own = f"{'ab'[side]}-{kind}.pem"
    return (f"x509/{own}", f"private/{own}", "x509ca/root.pem", *more)


def make_sides(
    *,
    ike: str | tuple[str, str] = IKE,
    esp: str | tuple[str, str] = ESP,
    certs: str | tuple[str, str] = "",
    outer: int | str = 4,
    inner: tuple[int, ...] = (4,),
    both: Values | None = None,
    initiator: Values | None = None,
    responder: Values | None = None,
    connection: Values | None = None,
    child: Values | None = None,
    settings: Values | tuple[Values, Values] | None = None,
    files: tuple[tuple[str, ...], tuple[str, ...]] = ((), ()),
) -> tuple[Side, Side]:
    """Two mirrored configurations. A pair is (initiator's, responder's); ``certs`` empty is a pre-shared key.

    ``initiator`` and ``responder`` are put over the whole configuration, ``connection`` and ``child`` over those
    sections of both.
    """
    sides = []
    settings = settings or {}
    for side, changes in enumerate((initiator, responder)):
        kind = certs[side] if isinstance(certs, tuple) else certs
        peer = certs[1 - side] if isinstance(certs, tuple) else certs
        local: Values = {"id": name_of(side), "auth": "pubkey" if kind else "psk"}
        if kind:
            local["certs"] = f"{'ab'[side]}-{kind}.pem"
        mine, theirs = NATTED if outer == "nat" else OUTER[int(outer)], 1 - side
        gateway: Values = {
            "version": "2",
            "local_addrs": mine[side],
            "remote_addrs": "%any" if outer == "nat" and side == RESPONDER else mine[theirs],
            "proposals": ike[side] if isinstance(ike, tuple) else ike,
            "local": local,
            "remote": {"id": name_of(theirs), "auth": "pubkey" if peer else "psk"},
            "children": {
                "net": {
                    "local_ts": tuple(NETS[version][side] for version in inner),
                    "remote_ts": tuple(NETS[version][theirs] for version in inner),
                    "esp_proposals": esp[side] if isinstance(esp, tuple) else esp,
                    **(child or {}),
                }
            },
        }
        values: Values = {"connections": {"gw": merge(gateway, connection or {})}}
        if not (kind and peer):
            values["secrets"] = {"ike-1": {"id-1": name_of(0), "id-2": name_of(1), "secret": "of no worth outside"}}
        values = merge(merge(values, both or {}), changes or {})
        own = settings[side] if isinstance(settings, tuple) else settings
        certificate = credential_files(side, kind) if kind else ("x509ca/root.pem",) if peer else ()
        sides.append(Side(values, own, tuple(dict.fromkeys((*certificate, *files[side])))))
    return sides[0], sides[1]


def gw(values: Values) -> Values:
    """Changes of the connection, as changes of the whole configuration."""
    return {"connections": {"gw": values}}


def net(values: Values) -> Values:
    """Changes of the child, as changes of the whole configuration."""
    return gw({"children": {"net": values}})


UP: tuple[Step, ...] = (Initiate(), Traffic())


def _basic() -> Iterator[Case]:
    suite = Suite("AES_GCM_16 128 PRF_HMAC_SHA2_256 CURVE_25519", "AES_GCM_16 128")
    yield Case("psk", make_sides(), (*UP, suite, Count(1, 1), OnWire("port 500 after IKE_SA_INIT", False)))
    sides = make_sides(ike="default", esp="default")
    yield Case("defaults", sides, UP)
    rekeyed = (Rekey("child", INITIATOR), Rekey("child", RESPONDER), Rekey("ike", INITIATOR), Rekey("child", INITIATOR))
    yield Case("defaults, rekeyed", sides, (*UP, *rekeyed, Traffic(), Count(1, 1)))
    yield Case("no mobike", make_sides(connection={"mobike": "no"}), UP)
    yield Case("psk as hex", make_sides(both={"secrets": {"ike-1": {"secret": "0x00ff10c0ffee"}}}), UP)
    addresses = make_sides(
        both={"secrets": {"ike-1": {"id-1": OUTER[4][0], "id-2": OUTER[4][1]}}},
        initiator=gw({"local": {"id": OUTER[4][0]}, "remote": {"id": OUTER[4][1]}}),
        responder=gw({"local": {"id": OUTER[4][1]}, "remote": {"id": OUTER[4][0]}}),
    )
    yield Case("addresses as identities", addresses, UP)
    wildcard = gw({"remote": {"id": "*.interop.test"}})
    yield Case("wildcard identity", make_sides(initiator=wildcard, responder=wildcard), UP)


def _key_exchanges() -> Iterator[Case]:
    names = {
        "x448": "CURVE_448",
        "ecp256": "ECP_256",
        "ecp384": "ECP_384",
        "ecp521": "ECP_521",
        "ecp256bp": "ECP_256_BP",
        "ecp384bp": "ECP_384_BP",
        "ecp512bp": "ECP_512_BP",
        "modp2048": "MODP_2048",
        "modp3072": "MODP_3072",
        "modp4096": "MODP_4096",
        "modp2048s256": "MODP_2048_256",
    }
    for keyword, name in names.items():
        yield Case(f"ke {keyword}", make_sides(ike=f"aes128gcm16-prfsha256-{keyword}"), (*UP, Suite(ike=name)))
    retry = make_sides(ike=("aes128gcm16-prfsha256-ecp256-x25519", IKE))
    yield Case("invalid ke", retry, (*UP, OnWire("invalid key exchange"), Suite(ike="CURVE_25519")))
    pair = ("aes256gcm16-prfsha384-ecp384,aes128gcm16-prfsha256-modp2048", "aes128gcm16-prfsha256-modp2048")
    yield Case("invalid ke, second proposal", make_sides(ike=pair), (*UP, OnWire("invalid key exchange")))


def _ike_suites() -> Iterator[Case]:
    names = {
        "aes256gcm16-prfsha512": "AES_GCM_16 256 PRF_HMAC_SHA2_512",
        "aes192gcm12-prfsha384": "AES_GCM_12 192 PRF_HMAC_SHA2_384",
        "aes128ccm12-prfsha256": "AES_CCM_12 128 PRF_HMAC_SHA2_256",
        "chacha20poly1305-prfsha256": "CHACHA20_POLY1305 PRF_HMAC_SHA2_256",
        "aes256-sha256": "AES_CBC 256 HMAC_SHA2_256_128 PRF_HMAC_SHA2_256",
        "aes192-sha384": "AES_CBC 192 HMAC_SHA2_384_192 PRF_HMAC_SHA2_384",
        "aes256-sha512": "AES_CBC 256 HMAC_SHA2_512_256 PRF_HMAC_SHA2_512",
        "aes128-sha1": "AES_CBC 128 HMAC_SHA1_96 PRF_HMAC_SHA1",
        "aes128ctr-sha256": "AES_CTR 128 HMAC_SHA2_256_128",
        "3des-sha1": "3DES_CBC HMAC_SHA1_96 PRF_HMAC_SHA1",
        "aes128-aesxcbc": "AES_CBC 128 AES_XCBC_96 PRF_AES128_XCBC",
        "aes128-aescmac": "AES_CBC 128 AES_CMAC_96 PRF_AES128_CMAC",
        "aes128gcm16-prfaesxcbc": "AES_GCM_16 128 PRF_AES128_XCBC",
        "aes128-sha256-prfsha512": "AES_CBC 128 HMAC_SHA2_256_128 PRF_HMAC_SHA2_512",
    }
    for keyword, name in names.items():
        yield Case(f"ike {keyword}", make_sides(ike=f"{keyword}-x25519"), (*UP, Suite(ike=name)))


def _esp_suites() -> Iterator[Case]:
    names = {
        "aes256gcm16": "AES_GCM_16 256",
        "aes192gcm16": "AES_GCM_16 192",
        "aes128gcm8": "AES_GCM_8 128",
        "aes256ccm16": "AES_CCM_16 256",
        "chacha20poly1305": "CHACHA20_POLY1305",
        "aes128-sha1": "AES_CBC 128 HMAC_SHA1_96",
        "aes256-sha256": "AES_CBC 256 HMAC_SHA2_256_128",
        "aes192-sha384": "AES_CBC 192 HMAC_SHA2_384_192",
        "aes256-sha512": "AES_CBC 256 HMAC_SHA2_512_256",
        "aes128ctr-sha256": "AES_CTR 128 HMAC_SHA2_256_128",
        "aes128-aesxcbc": "AES_CBC 128 AES_XCBC_96",
    }
    for keyword, name in names.items():
        yield Case(f"esp {keyword}", make_sides(esp=keyword), (*UP, Suite(child=name)))
    # libipsec has no such HMAC, the kernel has
    cut = make_sides(esp="aes128-sha256", child={"sha256_96": "yes"})
    steps = (*UP, Rekey("child"), Traffic(), Suite(child="AES_CBC 128 HMAC_SHA2_256_128"), Count(1, 1))
    yield Case("sha256 of 96 bits", cut, steps, not_charon=("initiator", "responder"))
    nets = ("10.1.1.0/24", "10.2.1.0/24")
    plain = {"local_ts": nets[0], "remote_ts": nets[1], "esp_proposals": "aes128-sha256"}
    mixed = make_sides(
        esp="aes128-sha256",
        child={"sha256_96": "yes"},
        initiator=gw({"children": {"two": plain}}),
        responder=gw({"children": {"two": {**plain, "local_ts": nets[1], "remote_ts": nets[0]}}}),
    )
    steps = (*UP, Initiate("two"), Traffic(source=OTHER[0], target=OTHER[1]), Traffic(), Count(1, 2))
    yield Case("sha256 of 96 bits in one of two children", mixed, steps, not_charon=("initiator", "responder"))
    ours = make_sides(esp="aes128-sha256", initiator=net({"sha256_96": "yes"}))
    steps = (Initiate(), NoTraffic(), Count(1, 1))
    yield Case("sha256 of 96 bits at one end", ours, steps, not_charon=("initiator",))
    several = make_sides(esp=("aes256-sha512,chacha20poly1305,aes128gcm16", "aes128gcm16,chacha20poly1305"))
    yield Case("esp, first common one", several, UP)


def _authentication() -> Iterator[Case]:
    schemes = {
        "rsa": r"RSA_EMSA_PKCS1_SHA2_|RSA signature",
        "rsa3072": r"RSA_EMSA_PKCS1_SHA2_",
        "ecdsa256": "ECDSA",
        "ecdsa384": "ECDSA",
        "ecdsa521": "ECDSA",
        "ed25519": "ED25519",
        "ed448": "ED448",
    }
    for kind, scheme in schemes.items():
        yield Case(f"certificates {kind}", make_sides(certs=kind), (*UP, Log(scheme, RESPONDER, kind="charon")))
    pss = make_sides(certs="rsa", connection={"local": {"auth": "ike:rsa/pss-sha256"}})
    # the peer would take SHA-256 for a key of that size, were it told of it
    strict = gw({"remote": {"auth": "ike:rsa-sha512"}})
    yield Case("the hash is ours to choose", make_sides(certs="rsa", initiator=strict), UP)
    yield Case("rsa pss", pss, (*UP, Log("PSS", RESPONDER, kind="charon"), Log("PSS", INITIATOR, kind="charon")))
    yield Case("rsa and ed25519", make_sides(certs=("rsa", "ed25519")), UP)
    yield Case("psk and certificate", make_sides(certs=("", "ecdsa256")), UP)
    yield Case("certificate and psk", make_sides(certs=("ecdsa256", "")), UP)
    names = make_sides(
        certs="rsa",
        initiator=gw({"local": {"id": None}, "remote": {"id": subject_of(1, "rsa")}}),
        responder=gw({"local": {"id": None}, "remote": {"id": "C=CH, O=*, OU=*, CN=*"}}),
    )
    yield Case("distinguished names", names, UP)
    mail = make_sides(
        certs="ecdsa256", initiator=gw({"local": {"id": "gw@a.interop.test"}}), responder=gw({"remote": {"id": "%any"}})
    )
    yield Case("e-mail as identity", mail, UP)
    unsigned = {"signature_authentication": "no"}
    for kind in ("ecdsa256", "ecdsa384"):
        yield Case(f"{kind} without RFC 7427", make_sides(certs=kind, settings=unsigned), UP)
    for side, who in ((0, "initiator"), (1, "responder")):
        certs = ("intermediate", "rsa") if side == 0 else ("rsa", "intermediate")
        own: list[tuple[str, ...]] = [(), ()]
        own[side] = ("x509ca/intermediate.pem",)
        sides = make_sides(certs=certs, connection={"send_cert": "always"}, files=(own[0], own[1]))
        yield Case(f"intermediate CA of the {who}", sides, UP)
    strict = gw({"remote": {"revocation": "strict"}})
    crl = ("x509crl/root.pem",)
    yield Case(
        "strict revocation with a CRL",
        make_sides(certs="rsa", initiator=strict, responder=strict, files=(crl, crl)),
        UP,
    )


def _refusals() -> Iterator[Case]:
    refused = (Initiate(up=False), NoTraffic())
    wrong = {"secrets": {"ike-1": {"secret": "another one"}}}
    steps = (*refused, Log(FAILED, RESPONDER), Log(FAILED, INITIATOR), Count(0, 0))
    yield Case("wrong psk", make_sides(initiator=wrong), steps)
    yield Case("wrong identity of the initiator", make_sides(responder=gw({"remote": {"id": "c.interop.test"}})), steps)
    sides = make_sides(initiator=gw({"remote": {"id": "c.interop.test"}}))
    yield Case("wrong identity of the responder", sides, (*refused, Count(0, 0)))
    sides = make_sides(certs=("rsa", "rsa"), initiator=gw({"remote": {"id": "c.interop.test"}}))
    yield Case("wrong identity in a certificate", sides, (*refused, Count(0, 0)))
    sides = make_sides(responder=gw({"remote": {"auth": "pubkey"}}), files=((), ("x509ca/root.pem",)))
    yield Case("psk where a certificate is wanted", sides, steps)
    crl = ("x509crl/root.pem",)
    for kind in ("revoked", "expired", "stranger"):
        for side, who in ((0, "initiator"), (1, "responder")):
            certs = (kind, "rsa") if side == 0 else ("rsa", kind)
            sides = make_sides(certs=certs, connection={"send_cert": "always"}, files=(crl, crl))
            steps = (*refused, Log(FAILED, None), Count(0, 0))
            yield Case(f"{kind} certificate of the {who}", sides, steps)
    sides = make_sides(certs="rsa", responder=gw({"remote": {"revocation": "strict"}}))
    yield Case("strict revocation without a CRL", sides, (*refused, Log(FAILED, RESPONDER), Count(0, 0)))
    sides = make_sides(ike=("aes128-sha256-modp2048", "aes256gcm16-prfsha384-ecp384"))
    yield Case("no ike proposal", sides, (*refused, Log(NO_PROPOSAL, 0), Log(NO_PROPOSAL, 1), Count(0, 0)))
    sides = make_sides(esp=("aes128-sha256", "aes256gcm16"))
    yield Case("no esp proposal", sides, (*refused, Log(NO_PROPOSAL, 0), Log(NO_PROPOSAL, 1)))
    sides = make_sides(responder=net({"remote_ts": "10.5.0.0/16"}))
    yield Case("ts unacceptable", sides, (*refused, Log("TS_UNACCEPT", 0), Log("TS_UNACCEPT", 1)))
    sides = make_sides(responder=gw({"children": None}))
    yield Case("no child there", sides, refused)
    # who was refused once may try again
    sides = make_sides(responder=wrong)
    again = (*refused, Reconfigure(RESPONDER, make_sides()[1]), *UP)
    yield Case("wrong psk, put right", sides, again)


def _postquantum() -> Iterator[Case]:
    ppk = {"secrets": {"ppk-1": {"id-1": "pq.interop.test", "secret": "0x" + "a5" * 32}}}
    other = {"secrets": {"ppk-1": {"id-1": "other.interop.test", "secret": "0x" + "5a" * 32}}}
    wrong = {"secrets": {"ppk-1": {"id-1": "pq.interop.test", "secret": "0x" + "5a" * 32}}}
    wish, must = gw({"ppk_id": "pq.interop.test"}), gw({"ppk_id": "pq.interop.test", "ppk_required": "yes"})
    shown = (*UP, Postquantum(), Rekey("ike"), Rekey("child"), Traffic(), Postquantum())
    for kind in ("", "rsa"):
        sides = make_sides(certs=kind, both=ppk, initiator=must, responder=gw({"ppk_required": "yes"}))
        yield Case(f"ppk {kind or 'psk'}", sides, shown)
    without = (*UP, Postquantum(used=False), Log("PPK|postquantum", INITIATOR))
    yield Case("ppk the peer has not", make_sides(initiator=merge(ppk, wish), responder=other), without)
    sides = make_sides(certs="rsa", initiator=merge(ppk, wish), responder=other)
    yield Case("ppk the peer has not, certificates", sides, without)
    yield Case("ppk at one end", make_sides(initiator=merge(ppk, wish)), without)
    refused = (Initiate(up=False), NoTraffic(), Count(0, 0))
    yield Case("ppk required, the peer has none", make_sides(initiator=merge(ppk, must)), refused)
    yield Case("ppk required, the peer has another", make_sides(initiator=merge(ppk, must), responder=other), refused)
    yield Case("ppk required by the responder", make_sides(responder=merge(ppk, must)), refused)
    yield Case("ppk wrong", make_sides(initiator=merge(ppk, wish), responder=wrong), (*refused, Log(FAILED, RESPONDER)))


def _fragments() -> Iterator[Case]:
    small = {"fragment_size": "576"}
    shown = (*UP, OnWire("request fragments"), OnWire("response fragments"))
    yield Case("fragments", make_sides(certs="rsa", settings=small), shown)
    yield Case("many fragments", make_sides(certs="rsa3072", settings={"fragment_size": "300"}), shown)
    sides = make_sides(certs="rsa", settings=small, outer=6)
    yield Case("fragments over IPv6", sides, shown)
    sides = make_sides(certs="rsa", settings=small, ike="aes256-sha256-modp2048")
    yield Case("fragments with AES-CBC", sides, shown)
    refused = (*UP, OnWire("request fragments", False), OnWire("response fragments", False))
    for role in ("initiator", "responder"):
        changes: Any = {role: gw({"fragmentation": "no"})}
        yield Case(f"no fragments for the {role}", make_sides(certs="rsa", settings=small, **changes), refused)
    accept = make_sides(certs="rsa", settings=small, responder=gw({"fragmentation": "accept"}))
    yield Case("fragments one way", accept, (*UP, OnWire("request fragments"), OnWire("response fragments", False)))


def _cookies() -> Iterator[Case]:
    strict = {"cookie_threshold": "1", "cookie_threshold_ip": "1", "block_threshold": "0"}
    shown = (HalfOpen(), *UP, OnWire("cookie"))
    yield Case("cookie", make_sides(settings=({}, strict)), shown)
    retry = make_sides(ike=("aes128gcm16-prfsha256-ecp256-x25519", IKE), settings=({}, strict))
    yield Case("cookie and invalid ke", retry, (*shown, OnWire("invalid key exchange")))


def _rekeying() -> Iterator[Case]:
    for by, who in ((INITIATOR, "initiator"), (RESPONDER, "responder")):
        yield Case(f"rekey child by {who}", make_sides(), (*UP, Rekey("child", by), Traffic(), Count(1, 1)))
        sides = make_sides(esp="aes256gcm16-x25519")
        yield Case(
            f"rekey child with pfs by {who}", sides, (*UP, Rekey("child", by), Traffic(), Suite(child="CURVE_25519"))
        )
        yield Case(f"rekey ike by {who}", make_sides(), (*UP, Rekey("ike", by), Traffic(), Count(1, 1)))
        esp = ("aes128gcm16-ecp256-x25519", "aes128gcm16-x25519")
        sides = make_sides(esp=esp if by == INITIATOR else esp[::-1])
        yield Case(f"rekey child, other group, by {who}", sides, (*UP, Rekey("child", by), Traffic(), Count(1, 1)))
    for keyword in ("aes256-sha256-modp2048", "aes128-aesxcbc-ecp256", "chacha20poly1305-prfsha512-x448"):
        steps = (*UP, Rekey("ike", INITIATOR), Traffic(), Count(1, 1))
        yield Case(f"rekey ike {keyword}", make_sides(ike=keyword), steps)
    both = (*UP, Rekey("ike"), Rekey("child"), Traffic(), Count(1, 1))
    yield Case("rekey ike, then child", make_sides(), both)
    # each end likes another PRF best: strongSwan would have the new one mean something else than section 2.18
    likes = ("aes256gcm16-prfsha256-x25519", "aes128gcm16-prfsha384-x25519")
    sides = make_sides(ike=(",".join(likes), ",".join(likes[::-1])))
    steps = (*UP, Rekey("ike", RESPONDER), Rekey("child", RESPONDER), Traffic(), Count(1, 1))
    yield Case("rekey ike, other prf", sides, steps)
    yield Case("reauthenticate", make_sides(certs="ecdsa256"), (*UP, Rekey("reauth"), Traffic(), Count(1, 1)))
    sides = make_sides(settings={"make_before_break": "yes"})
    yield Case("reauthenticate, make before break", sides, (*UP, Rekey("reauth"), Traffic(), Count(1, 1)))


def _ends() -> Iterator[Case]:
    for by, who in ((INITIATOR, "initiator"), (RESPONDER, "responder")):
        yield Case(f"delete ike by {who}", make_sides(), (*UP, Delete("ike", by)))
        yield Case(f"delete child by {who}", make_sides(), (*UP, Delete("child", by)))
    alive = make_sides(connection={"dpd_delay": "1s"}, settings=QUICK)
    yield Case("dpd, responder dies", alive, (*UP, Kill(RESPONDER), Count(0, 0)))
    yield Case("dpd, initiator dies", alive, (*UP, Kill(INITIATOR), Count(0, 0)))
    again = make_sides(
        initiator=gw({"dpd_delay": "1s", "keyingtries": "0", "children": {"net": {"dpd_action": "restart"}}}),
        settings=QUICK,
    )
    back = (*UP, Kill(RESPONDER), Restart(RESPONDER), Traffic(), Count(1, 1))
    yield Case("responder restarts", again, back)
    yield Case("initial contact", make_sides(), (*UP, Kill(INITIATOR), Restart(INITIATOR), *UP, Count(1, 1)))
    for unique, step in (("replace", Count(1)), ("no", Count(2)), ("never", Count(2)), ("keep", Count(1))):
        # the second comes from another address: from the same one charon takes it for a reauthentication
        here, there = make_sides(
            connection={"unique": unique}, responder=gw({"local_addrs": "%any", "remote_addrs": "%any"})
        )
        first = here.swanctl["connections"]["gw"]
        addresses = {"local_addrs": NATTED[0], "remote_addrs": NATTED[1]}
        second = {**first, **addresses, "children": {"two": first["children"]["net"]}}
        both = Side(merge(here.swanctl, {"connections": {"two": second}}), here.settings, here.files)
        steps = (*UP, Initiate("two", up=unique != "keep"), step)
        yield Case(f"unique {unique}", (both, there), steps)


def _addresses() -> Iterator[Case]:
    for outer, inner in ((6, (6,)), (6, (4,)), (4, (6,))):
        steps = (Initiate(), Traffic(versions=inner))
        yield Case(f"IPv{inner[0]} in IPv{outer}", make_sides(outer=outer, inner=inner), steps)
    yield Case("both families in one child", make_sides(inner=(4, 6)), (Initiate(), Traffic(versions=(4, 6))))
    natted = (*UP, OnWire("port 500 after IKE_SA_INIT", False), Log(NAT_OUTSIDE.replace(".", r"\."), RESPONDER))
    yield Case("nat", make_sides(outer="nat"), natted)
    yield Case("nat, certificates", make_sides(outer="nat", certs="rsa", settings={"fragment_size": "576"}), natted)
    yield Case("nat, rekey ike by responder", make_sides(outer="nat"), (*natted, Rekey("ike", RESPONDER), Traffic()))
    yield Case(
        "nat, rekey child by responder", make_sides(outer="nat"), (*natted, Rekey("child", RESPONDER), Traffic())
    )
    alive = make_sides(outer="nat", settings=({"keep_alive": "1"}, {}))
    yield Case("nat keepalives", alive, (*natted, Wait("keepalive")))
    roaming = make_sides(initiator=gw({"local_addrs": "%any"}), responder=gw({"remote_addrs": "%any"}))
    yield Case("mobike", roaming, (*UP, Move(), Traffic(), Count(1, 1)), one_address=True)
    anywhere = make_sides(both=gw({"local_addrs": "%any"}), settings={"retransmit_timeout": "0.5"})
    for end, who in ((INITIATOR, "initiator"), (RESPONDER, "responder")):
        steps = (*UP, CutWire(end), Traffic(), Count(1, 1), Rekey("ike", RESPONDER), Traffic(), Count(1, 1))
        yield Case(f"mobike, two wires, cut at the {who}", anywhere, steps, two_wires=True)
    swapped = (*UP, Rekey("ike", RESPONDER), CutWire(INITIATOR), Traffic(), Count(1, 1))
    yield Case("mobike, two wires, cut after rekeying by the responder", anywhere, swapped, two_wires=True)
    # charon looks for another path when its own addresses or routes change, not when the peer is silent
    alive = make_sides(
        both=gw({"local_addrs": "%any"}), initiator=gw({"dpd_delay": "1s"}), settings={"retransmit_timeout": "0.5"}
    )
    silent = (*UP, Silence(), Traffic(), Count(1, 1))
    yield Case("mobike, two wires, one is silent", alive, silent, two_wires=True, not_charon=("initiator",))


def _virtual() -> Iterator[Case]:
    pools = {
        "pools": {
            "four": {"addrs": "10.9.0.0/24", "dns": "10.2.0.53"},
            "six": {"addrs": "fd09::/120", "dns": "fd02::53"},
        }
    }
    yield Case("virtual IPv4", _with_pool(pools, (4,)), (Initiate(), VirtualTraffic("10.9.0.0/24", INNER[4][1])))
    yield Case("virtual IPv6", _with_pool(pools, (6,)), (Initiate(), VirtualTraffic("fd09::/120", INNER[6][1])))
    both = (
        Initiate(),
        VirtualTraffic("10.9.0.0/24", INNER[4][1]),
        VirtualTraffic("fd09::/120", INNER[6][1]),
        Log(r"10\.2\.0\.53", INITIATOR),
    )
    yield Case("virtual addresses and dns", _with_pool(pools, (4, 6)), both)
    yield Case("virtual address, nat", _with_pool(pools, (4,), outer="nat"), both[:2])
    without = _with_pool(pools, (4,))
    bare = Side(merge(without[1].swanctl, gw({"pools": None})), without[1].settings, without[1].files)
    yield Case("virtual address refused", (without[0], bare), (Initiate(up=False), NoTraffic()))


def _with_pool(pools: Values, versions: tuple[int, ...], **options: Any) -> tuple[Side, Side]:
    asked = {4: "0.0.0.0", 6: "::"}
    named = {4: "four", 6: "six"}
    return make_sides(
        inner=versions,
        initiator=gw({"vips": tuple(asked[v] for v in versions), "children": {"net": {"local_ts": "dynamic"}}}),
        responder=merge(
            pools, gw({"pools": tuple(named[v] for v in versions), "children": {"net": {"remote_ts": "dynamic"}}})
        ),
        **options,
    )


def _children() -> Iterator[Case]:
    # the children of an initiator with childless = force come in CREATE_CHILD_SA
    forced = make_sides(initiator=gw({"childless": "force"}))
    yield Case("childless", forced, (*UP, OnWire("CREATE_CHILD_SA"), Count(1, 1)))
    never = make_sides(initiator=gw({"childless": "force"}), responder=gw({"childless": "never"}))
    yield Case("childless refused", never, (Initiate(up=False), NoTraffic()))
    # with that error neither end keeps the IKE_SA, though both have shown who they are
    insists = make_sides(responder=gw({"childless": "force"}))
    yield Case("childless insisted on", insists, (Initiate(up=False), Count(0, 0), Log("INVALID_SYNTAX", INITIATOR)))
    pools = merge({"pools": {"p": {"addrs": "10.9.0.0/24"}}}, gw({"pools": "p"}))
    wanted = (Initiate(up=False), Log(r"FAILED_CP_REQUIRED", INITIATOR), Count(1, 0), NoTraffic())
    yield Case("no address asked for where there are pools", make_sides(responder=pools), wanted)
    sides = make_sides(
        initiator=net({"local_ts": "10.0.0.0/8", "remote_ts": "10.0.0.0/8"}),
        responder=net({"local_ts": "10.2.0.0/24", "remote_ts": "10.1.0.0/24"}),
    )
    narrowed = Selectors(("10.1.0.0/24",), ("10.2.0.0/24",))
    yield Case("narrowing", sides, (*UP, narrowed, NoTraffic(OTHER[0], OTHER[1])))
    sides = make_sides(
        initiator=net({"local_ts": "10.1.0.0/24", "remote_ts": "10.2.0.0/24"}),
        responder=net({"local_ts": "10.0.0.0/8", "remote_ts": "10.0.0.0/8"}),
    )
    yield Case("narrowing, the other way", sides, (*UP, narrowed))
    several = tuple(f"{address}/32" for address in (INNER[4][1], OTHER[1]))
    sides = make_sides(initiator=net({"remote_ts": several}), responder=net({"local_ts": several}))
    yield Case("two selectors", sides, (*UP, Traffic(source=INNER[4][0], target=OTHER[1])))
    nets = ("10.1.1.0/24", "10.2.1.0/24")
    sides = make_sides(
        initiator=gw({"children": {"two": {"local_ts": nets[0], "remote_ts": nets[1], "esp_proposals": ESP}}}),
        responder=gw({"children": {"two": {"local_ts": nets[1], "remote_ts": nets[0], "esp_proposals": ESP}}}),
    )
    steps = (*UP, Initiate("two"), Traffic(source=OTHER[0], target=OTHER[1]), OnWire("CREATE_CHILD_SA"), Count(1, 2))
    yield Case("two children", sides, steps)
    yield Case("pfs is not for the first child", make_sides(esp=("aes128gcm16-x25519", "aes128gcm16-ecp256")), UP)
    trapped = make_sides(initiator=net({"start_action": "trap"}))
    yield Case("trap", trapped, (Traffic(),), not_charon=("initiator",))
    ended = make_sides(initiator=net({"start_action": "trap"}))
    yield Case(
        "trap, after a delete",
        ended,
        (Traffic(), Delete("ike", RESPONDER, trap=True), Traffic()),
        not_charon=("initiator",),
    )
    sides = make_sides(initiator=net({"close_action": "start"}))
    yield Case("close action start", sides, (*UP, Log("established", INITIATOR), Traffic()))
    sides = make_sides(initiator=net({"start_action": "start"}))
    yield Case("start action", sides, (Traffic(), Count(1, 1)))


def _newer() -> Iterator[Case]:
    """What later versions ask for, and get on without."""
    steps = (*UP, Rekey("child", INITIATOR), Rekey("ike", RESPONDER), Rekey("child", RESPONDER), Traffic(), Count(1, 1))

    def case(name: str, since: tuple[int, ...], charon: Values, **options: Any) -> Case:
        return Case(name, make_sides(**options), steps, charon=charon, since=since)

    yield case("ocsp asked for in ike", (6,), gw({"ocsp": "both"}), certs="rsa")
    yield case("childless preferred", (6,), gw({"childless": "prefer"}))
    yield case("ml-kem first", (6, 0, 2), gw({"proposals": f"aes128gcm16-prfsha256-mlkem768-x25519,{IKE}"}))
    besides = f"aes256gcm16-prfsha384-x25519-ke1_mlkem768,{IKE}"
    yield case("ml-kem besides, or not", (6, 0, 2), gw({"proposals": besides}))
    many = f"{IKE}-ke1_mlkem768-ke1_none-ke2_mlkem512-ke2_none-ke7_ecp384-ke7_none"
    yield case("optional key exchanges", (6, 0, 2), gw({"proposals": many}))
    optional = net({"esp_proposals": "aes128gcm16-x25519-none-ke1_mlkem768-ke1_none"})
    yield case("optional key exchanges of a child", (6, 0, 2), optional)
    yield case("ip-tfs", (6, 0, 2), net({"mode": "iptfs"}))
    yield case("sas for each cpu", (6, 0, 2), net({"per_cpu_sas": "yes", "start_action": "trap"}))


def _several() -> Iterator[Case]:
    """Several key exchanges for one SA (RFC 9242, RFC 9370), and ML-KEM."""
    hybrid, esp = "aes256gcm16-prfsha384-x25519-ke1_mlkem768", "aes256gcm16-x25519-ke1_mlkem768"
    suite = Suite("CURVE_25519 ML_KEM_768")

    def case(name: str, steps: tuple[Step, ...] = UP, *, ike: str | tuple[str, str] = hybrid, **options: Any) -> Case:
        return Case(f"several, {name}", make_sides(ike=ike, **options), steps, since=(6, 0, 2))

    yield case("x25519 and ml-kem", (*UP, suite, Count(1, 1)))
    yield case("ml-kem alone", ike="aes128gcm16-prfsha256-mlkem1024")
    yield case("with gaps", ike="aes256-sha384-mlkem768-ke2_ecp384-ke5_x25519-ke7_mlkem1024")
    steps = (*UP, Log("KE2_ECP_256"))
    some = f"{hybrid}-ke1_none-ke2_ecp256-ke2_none", "aes256gcm16-prfsha384-x25519-ke2_ecp256"
    yield case("some of them", steps, ike=some)
    yield case("or none of them", ike=(f"{hybrid}-ke1_none", "aes256gcm16-prfsha384-x25519"))
    refused = (Initiate(up=False), NoTraffic(), Log(NO_PROPOSAL, 0), Log(NO_PROPOSAL, 1))
    yield case("others", refused, ike=(hybrid, "aes256gcm16-prfsha384-x25519-ke1_mlkem1024"))
    yield case("many fragments", certs="rsa", settings={"fragment_size": "400"})
    yield case("no fragments", connection={"fragmentation": "no"})
    strict = {"cookie_threshold": "1", "cookie_threshold_ip": "1", "block_threshold": "0"}
    other = "aes256gcm16-prfsha384-ecp256-x25519-ke1_mlkem768", f"{hybrid},{IKE}"
    yield case("cookie and invalid ke", (HalfOpen(), *UP, OnWire("cookie")), ike=other, settings=({}, strict))
    yield case("nat", outer="nat")
    yield case("childless", (*UP, Count(1, 1)), esp=esp, initiator=gw({"childless": "force"}))
    ppk = {"secrets": {"ppk-1": {"id-1": "pq.interop.test", "secret": "0x" + "a5" * 32}}}
    must = gw({"ppk_id": "pq.interop.test", "ppk_required": "yes"})
    yield case("ppk", (*UP, Postquantum()), both=ppk, initiator=must, responder=gw({"ppk_required": "yes"}))
    yield case("reauthenticate", (*UP, Rekey("reauth"), Traffic(), Count(1, 1)))
    for by, who in ((INITIATOR, "initiator"), (RESPONDER, "responder")):
        twice = (*UP, Rekey("ike", by), Traffic(), Count(1, 1), Rekey("child", by), Traffic(), suite, Count(1, 1))
        yield case(f"rekeyed by the {who}", (*twice, Rekey("child", by), Rekey("ike", by), Traffic()), esp=esp)
    three = "aes256gcm16-prfsha512-ecp384-ke1_mlkem1024-ke2_x25519-ke3_mlkem768"
    yield case("three, rekeyed", (*UP, Rekey("ike"), Rekey("ike", RESPONDER), Traffic(), Count(1, 1)), ike=three)
    steps = (*UP, Rekey("child"), Rekey("child", RESPONDER), Traffic(), Count(1, 1))
    yield case("for a child alone", steps, ike=IKE, esp=esp)


GROUPS = (
    _basic,
    _key_exchanges,
    _ike_suites,
    _esp_suites,
    _authentication,
    _refusals,
    _postquantum,
    _fragments,
    _cookies,
    _rekeying,
    _ends,
    _addresses,
    _virtual,
    _children,
    _newer,
    _several,
)
CASES = tuple(case for group in GROUPS for case in group())
