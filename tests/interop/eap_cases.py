"""The part of the matrix that is about EAP: end a shows by a password who it is, end b by a certificate. Data only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ipsec.crypto.mschap import nt_password_hash
from tests.interop.cases import IKE, QUICK, Case, Values, gw, make_sides, merge
from tests.interop.certificates import name_of
from tests.interop.gateway import Side
from tests.interop.lab import INNER, NATTED, NETS
from tests.interop.steps import (
    INITIATOR,
    RESPONDER,
    AuthenticatedAnew,
    Count,
    Delete,
    Initiate,
    Kill,
    Log,
    Move,
    NoTraffic,
    OnWire,
    Rekey,
    Restart,
    Step,
    Traffic,
    User,
    VirtualTraffic,
)

#: names of sections have none of these
_NO_DOTS = str.maketrans(".@", "--")
PASSWORD = "of no worth outside"
USER = "carol"
#: which the default runs have, in one role each
QUICK_CASES = frozenset(
    {
        "eap mschapv2",
        "eap md5, who is known by IKE",
        "eap, plain",
        "eap tls 1.2, rsa",
        "eap, wrong password",
        "eap, address of a pool",
        "eap, connection of the user",
        "eap, rekeyed",
        "eap, reauthenticate",
    }
)


def secrets_of(users: dict[str, str], *, kind: str = "eap") -> Values:
    """A section ``secrets`` with the passwords of these users."""
    pairs = users.items()
    return {"secrets": {f"{kind}-{user.translate(_NO_DOTS)}": {"id": user, "secret": secret} for user, secret in pairs}}


def hash_of(password: str) -> str:
    """The NT hash as swanctl.conf has it."""
    return f"0x{nt_password_hash(password.encode()).hex()}"


def make_eap(
    *,
    auth: str | tuple[str, str] = "eap-mschapv2",
    eap_id: tuple[str | None, str | None] = (USER, "%any"),
    gateway: str = "ecdsa256",
    users: Values | None = None,
    initiator: Values | None = None,
    responder: Values | None = None,
    **more: Any,
) -> tuple[Side, Side]:
    """Two mirrored configurations, as ``make_sides`` has them. A pair is (initiator's, responder's); ``gateway`` is
    the responder's certificate, empty for a preshared key. ``users`` is the section ``secrets`` of both."""
    mine, theirs = (auth, auth) if isinstance(auth, str) else auth
    own = secrets_of({USER: PASSWORD}) if users is None else users
    if gateway:
        own = merge({"secrets": {"ike-1": None}}, own)
    client = gw({"local": {"auth": mine, "eap_id": eap_id[0]}})
    server = gw({"remote": {"auth": theirs, "eap_id": eap_id[1]}})
    return make_sides(
        certs=("", gateway),
        initiator=merge(merge(own, client), initiator or {}),
        responder=merge(merge(own, server), responder or {}),
        **more,
    )


UP: tuple[Step, ...] = (Initiate(), Traffic(), User(USER))
#: what charon says of EAP that comes to nothing, and we
REFUSED = r"EAP_FAILURE|EAP-Failure|EAP method \w+ failed|EAP of \S+: |fatal TLS alert|AUTH(ENTICATION)?_FAILED"
DOWN: tuple[Step, ...] = (Initiate(up=False), NoTraffic(), Count(0, 0))


def _methods() -> Iterator[Case]:
    yield Case("eap mschapv2", make_eap(), (*UP, Log("MSCHAPV2", RESPONDER)))
    by_ike = secrets_of({name_of(0): PASSWORD})
    for method in ("mschapv2", "md5"):
        sides = make_eap(auth=f"eap-{method}", eap_id=(None, None), users=by_ike)
        steps = (Initiate(), Traffic(), User(name_of(0)))
        yield Case(f"eap {method}, who is known by IKE", sides, steps)
    yield Case("eap mschapv2, asked who is known by IKE", make_eap(eap_id=(None, "%any"), users=by_ike), steps)
    yield Case("eap md5", make_eap(auth="eap-md5"), UP)
    yield Case("eap gtc", make_eap(auth="eap-gtc", settings=({}, {"plugins": {"eap-gtc": {"backend": "generic"}}})), UP)
    yield Case("eap, preshared key of the gateway", make_eap(gateway=""), UP)
    yield Case("eap, plain", make_eap(auth=("eap", "eap-mschapv2")), UP)
    # charon's own eap-dynamic is a plugin that Debian leaves out
    sides = make_eap(auth=("eap", "eap-dynamic"))
    yield Case("eap, dynamic", sides, UP, not_charon=("responder",))
    yield Case("eap by number", make_eap(auth=("eap-26", "eap-mschapv2")), UP)
    mail = "carol@interop.test"
    sides = make_eap(eap_id=(mail, "*@interop.test"), users=secrets_of({mail: PASSWORD}))
    yield Case("eap, e-mail as user", sides, (Initiate(), Traffic(), User(mail)))
    # charon's vici takes ASCII alone
    for octets, how in (("jörg".encode(), "UTF-8"), ("jörg".encode("latin-1"), "Latin-1")):
        user = f'"fqdn:#{octets.hex()}"'
        known = {"secrets": {"eap-jorg": {"id": user, "secret": PASSWORD}}}
        yield Case(f"eap, user in {how}", make_eap(eap_id=(user, "%any"), users=known), (Initiate(), Traffic()))
    user = '"CORP\\\\carol"'
    known = {"secrets": {"eap-corp": {"id": user, "secret": PASSWORD}}}
    domain = make_eap(eap_id=(user, "%any"), users=known)
    yield Case("eap, user with a domain", domain, (Initiate(), Traffic(), User("CORP\\carol")))
    word = "pässwörd mit ключ " + "long " * 40
    yield Case("eap, long password beyond ASCII", make_eap(users=secrets_of({USER: word.strip()})), UP)
    hashed = secrets_of({USER: hash_of(PASSWORD)}, kind="ntlm")
    gone = {"secrets": {f"eap-{USER}": None}}
    yield Case("eap, NT hash of the user", make_eap(initiator=merge(gone, hashed)), UP)
    yield Case("eap, NT hash at the gateway", make_eap(responder=merge(gone, hashed)), UP)
    for kind in ("rsa", "ed25519"):
        yield Case(f"eap, gateway with {kind}", make_eap(gateway=kind), UP)
    files = ((), ("x509ca/intermediate.pem",))
    sides = make_eap(gateway="intermediate", connection={"send_cert": "always"}, files=files)
    yield Case("eap, gateway with an intermediate CA", sides, UP)


def _refusals() -> Iterator[Case]:
    wrong = secrets_of({USER: "another one"})
    for method in ("mschapv2", "md5"):
        steps = (*DOWN, Log(REFUSED, INITIATOR), Log(REFUSED, RESPONDER))
        name = "eap" if method == "mschapv2" else f"eap {method}"
        yield Case(f"{name}, wrong password", make_eap(auth=f"eap-{method}", initiator=wrong), steps)
        others = {"secrets": {f"eap-{USER}": None, **secrets_of({"dave": PASSWORD})["secrets"]}}
        yield Case(f"{name}, unknown user", make_eap(auth=f"eap-{method}", responder=others), steps)
    steps = (*DOWN, Log(f"no EAP secret for {USER}|no EAP key found.*{USER}", INITIATOR))
    yield Case("eap, user without password", make_eap(initiator={"secrets": {f"eap-{USER}": None}}), steps)
    steps = (*DOWN, Log(REFUSED, INITIATOR))
    yield Case("eap, user whom no connection is for", make_eap(eap_id=(USER, "dave")), steps)
    yield Case("eap, other method", make_eap(auth=("eap-md5", "eap-mschapv2")), steps)
    yield Case("eap, other method, the other way", make_eap(auth=("eap-mschapv2", "eap-md5")), steps)
    password = make_eap(responder=gw({"remote": {"auth": "pubkey", "eap_id": None}}))
    yield Case("eap where a certificate is wanted", password, steps)
    certified = make_eap(
        initiator=gw({"local": {"auth": "pubkey", "eap_id": None, "certs": "a-rsa.pem"}}),
        files=(("x509/a-rsa.pem", "private/a-rsa.pem"), ()),
    )
    yield Case("certificate where eap is wanted", certified, steps)
    for kind in ("expired", "stranger"):
        yield Case(f"eap, {kind} certificate of the gateway", make_eap(gateway=kind), DOWN)
    posing = make_eap(initiator=gw({"remote": {"id": "c.interop.test"}}))
    yield Case("eap, gateway of another name", posing, DOWN)


def _connections() -> Iterator[Case]:
    pools = {"pools": {"four": {"addrs": "10.9.0.0/24", "dns": "10.2.0.53"}}}
    client = gw({"vips": "0.0.0.0", "children": {"net": {"local_ts": "dynamic"}}})
    server = merge(pools, gw({"pools": "four", "children": {"net": {"remote_ts": "dynamic"}}}))
    virtual = (Initiate(), VirtualTraffic("10.9.0.0/24", INNER[4][1]), User(USER))
    yield Case("eap, address of a pool", make_eap(initiator=client, responder=server), virtual)
    again = (*virtual, Kill(INITIATOR), Restart(INITIATOR), *virtual, Count(1, 1))
    one = merge(server, {"pools": {"four": {"addrs": "10.9.0.1-10.9.0.1"}}})
    yield Case("eap, the only address of a pool again", make_eap(initiator=client, responder=one), again)
    users = secrets_of({USER: PASSWORD, "dave": "that of dave"})
    for order in ((USER, "dave"), ("dave", USER)):
        sides = make_eap(users=users, eap_id=(USER, order[0]))
        (_, first), *_ = sides[1].swanctl["connections"].items()
        second = merge(first, {"remote": {"eap_id": order[1]}})
        wanted = {"children": {"net": {"local_ts": NETS[4][1], "remote_ts": NETS[4][0]}}}
        other = {"children": {"net": {"local_ts": "10.2.1.0/24", "remote_ts": "10.1.1.0/24"}}}
        both = [merge(one, wanted if user == USER else other) for one, user in zip((first, second), order, strict=True)]
        values = merge(sides[1].swanctl, {"connections": dict(zip(("gw", "two"), both, strict=True))})
        name = "eap, connection of the user" + (", the second" if order[1] == USER else "")
        steps = (Initiate(), Traffic(), User(USER, "gw" if order[0] == USER else "two"))
        yield Case(name, (sides[0], Side(values, sides[1].settings, sides[1].files)), steps)
    for unique, count in (("replace", 1), ("no", 2), ("keep", 1)):
        steps = (Initiate(), Traffic(), Initiate("two", up=unique != "keep"), Count(count))
        yield Case(f"eap, unique {unique}", _logged_in_twice(unique), steps)


def _logged_in_twice(unique: str) -> tuple[Side, Side]:
    """One user with two devices: each has its own address and identity, and does not say that it is the only one."""
    here, there = make_eap(
        initiator=gw({"unique": "never"}),
        responder=gw({"unique": unique, "local_addrs": "%any", "remote_addrs": "%any", "remote": {"id": "%any"}}),
    )
    first = here.swanctl["connections"]["gw"]
    where = {"local_addrs": NATTED[0], "remote_addrs": NATTED[1], "local": {"id": "device.interop.test"}}
    second = merge({**first, "children": {"two": first["children"]["net"]}}, where)
    return Side(merge(here.swanctl, {"connections": {"two": second}}), here.settings, here.files), there


def _life() -> Iterator[Case]:
    rekeyed = (Rekey("ike"), Rekey("child"), Rekey("ike", RESPONDER), Rekey("child", RESPONDER))
    yield Case("eap, rekeyed", make_eap(), (*UP, *rekeyed, Traffic(), User(USER), Count(1, 1)))
    anew = (*UP, Rekey("reauth"), Traffic(), User(USER), Count(1, 1))
    yield Case("eap, reauthenticate", make_eap(), anew)
    yield Case("eap, reauthenticate, make before break", make_eap(settings={"make_before_break": "yes"}), anew)
    for by, who in ((INITIATOR, "initiator"), (RESPONDER, "responder")):
        yield Case(f"eap, delete ike by {who}", make_eap(), (*UP, Delete("ike", by)))
    alive = make_eap(connection={"dpd_delay": "1s"}, settings=QUICK)
    yield Case("eap, dpd, responder dies", alive, (*UP, Kill(RESPONDER), Count(0, 0)))
    yield Case("eap, dpd, initiator dies", alive, (*UP, Kill(INITIATOR), Count(0, 0)))
    back = make_eap(
        initiator=gw({"dpd_delay": "1s", "keyingtries": "0", "children": {"net": {"dpd_action": "restart"}}}),
        settings=QUICK,
    )
    steps = (*UP, Kill(RESPONDER), Restart(RESPONDER), Traffic(), Count(1, 1))
    yield Case("eap, responder restarts", back, steps)
    both = (*UP, Kill(INITIATOR), Restart(INITIATOR), *UP, Count(1, 1))
    yield Case("eap, initial contact", make_eap(), both)
    # charon begins earlier than it is told to by its own over_time, and at once, again and again, where that is longer
    soon = {"over_time": "1s", "rand_time": "0s"}
    limited = make_eap(initiator=gw(soon), responder=gw({"reauth_time": "5s", "over_time": "10s", "rand_time": "0s"}))
    steps = (*UP, AuthenticatedAnew(), Traffic(), User(USER), Count(1, 1))
    yield Case("eap, responder wants reauthentication", limited, steps)


def _paths() -> Iterator[Case]:
    fragments = (*UP, OnWire("response fragments"))
    yield Case("eap, fragments", make_eap(gateway="rsa3072", settings={"fragment_size": "576"}), fragments)
    whole = make_eap(gateway="rsa3072", connection={"fragmentation": "no"})
    yield Case("eap, no fragments", whole, (*UP, OnWire("response fragments", False)))
    yield Case("eap, nat", make_eap(outer="nat"), UP)
    yield Case("eap, IPv6", make_eap(outer=6, inner=(6,)), (Initiate(), Traffic(versions=(6,)), User(USER)))
    roaming = make_eap(initiator=gw({"local_addrs": "%any"}), responder=gw({"remote_addrs": "%any"}))
    yield Case("eap, mobike", roaming, (*UP, Move(), Traffic(), Count(1, 1)), one_address=True)
    forced = make_eap(initiator=gw({"childless": "force"}))
    yield Case("eap, childless", forced, (*UP, OnWire("CREATE_CHILD_SA"), Count(1, 1)))
    strict = {"cookie_threshold": "0", "cookie_threshold_ip": "0"}
    retry = make_eap(ike=("aes128gcm16-prfsha256-ecp256-x25519", IKE), settings=({}, strict))
    yield Case("eap, invalid ke", retry, (*UP, OnWire("invalid key exchange")))
    yield Case("eap, prf of another length", make_eap(ike="aes256gcm16-prfsha512-ecp521"), UP)
    sides = make_eap(auth="eap-md5", ike="aes128-aesxcbc-x25519")
    yield Case("eap without a key, prf of a fixed length", sides, UP)


def make_tls(
    *,
    certs: tuple[str, str] = ("ecdsa256", "ecdsa256"),
    auth: tuple[str, str] = ("eap-tls", "eap-tls"),
    eap_id: tuple[str | None, str | None] = (None, None),
    alone: bool = False,
    initiator: Values | None = None,
    responder: Values | None = None,
    **more: Any,
) -> tuple[Side, Side]:
    """The same with EAP-TLS, where each end has a certificate. A pair is (initiator's, responder's). ``alone``: EAP
    shows who the responder is as well (RFC 5998)."""
    gateway = {"auth": "eap-tls" if alone else "pubkey"}
    client = gw({"local": {"auth": auth[0], "eap_id": eap_id[0]}, "remote": gateway})
    server = gw({"local": gateway, "remote": {"auth": auth[1], "eap_id": eap_id[1]}})
    return make_sides(
        certs=certs, initiator=merge(client, initiator or {}), responder=merge(server, responder or {}), **more
    )


#: charon goes no further than TLS 1.2 unless it is told to. 5.9.8 can be told so too, but knows nothing of the end that
#: RFC 9190 has: as server it leaves it out, as client it crashes
VERSIONS: tuple[tuple[str, tuple[int, ...], Values], ...] = (
    ("1.2", (), {}),
    ("1.3", (5, 9, 10), {"tls": {"version_max": "1.3"}}),
)


TLS_UP: tuple[Step, ...] = (Initiate(), Traffic(), User(name_of(0)), Log(r"EAP \(TLS\)|EAP_TLS", RESPONDER))


def _tls() -> Iterator[Case]:
    for kind in ("rsa", "rsa3072", "ecdsa256", "ecdsa384", "ecdsa521", "ed25519", "ed448"):
        yield Case(f"eap tls, {kind}", make_tls(certs=(kind, "ecdsa256")), TLS_UP)
    yield Case("eap tls, rsa at both ends", make_tls(certs=("rsa", "rsa")), TLS_UP)
    yield Case("eap tls, asked who is known by IKE", make_tls(eap_id=(None, "%any")), TLS_UP)
    mail = f"gw@{name_of(0)}"
    yield Case("eap tls, e-mail as user", make_tls(eap_id=(mail, "%any")), (Initiate(), Traffic(), User(mail)))
    yield Case("eap tls, plain", make_tls(auth=("eap", "eap-tls")), TLS_UP)
    yield Case("eap tls, dynamic", make_tls(auth=("eap-tls", "eap-dynamic")), TLS_UP, not_charon=("responder",))
    small = {"plugins": {"eap-tls": {"fragment_size": "300"}}}
    yield Case("eap tls, small fragments", make_tls(certs=("rsa3072", "rsa3072"), settings=small), TLS_UP)
    twice = (*TLS_UP, Rekey("ike"), Rekey("ike", RESPONDER), Traffic(), Count(1, 1))
    yield Case("eap tls alone, rekeyed", make_tls(alone=True), twice)
    anew = (*TLS_UP, Rekey("reauth"), Traffic(), Count(1, 1))
    yield Case("eap tls alone, reauthenticate", make_tls(alone=True), anew)
    for version, since, settings in VERSIONS:
        for name, sides, steps in _trust(settings):
            yield Case(f"eap tls {version}{name}", sides, steps, since=since)


def _trust(settings: Values) -> Iterator[tuple[str, tuple[Side, Side], tuple[Step, ...]]]:
    """Who believes whom, which depends on the version of TLS, as when is said what. Name, sides and steps."""
    middle, crl = ("x509ca/intermediate.pem",), ("x509crl/root.pem",)
    yield ", rsa", make_tls(certs=("rsa", "ecdsa256"), settings=settings), TLS_UP
    yield " alone", make_tls(alone=True, settings=settings), TLS_UP
    sides = make_tls(certs=("intermediate", "ecdsa256"), files=(middle, ()), settings=settings)
    yield ", intermediate CA of the user", sides, TLS_UP
    sides = make_tls(alone=True, certs=("ecdsa256", "intermediate"), files=((), middle), settings=settings)
    yield " alone, intermediate CA of the gateway", sides, TLS_UP
    for kind in ("expired", "stranger", "revoked"):
        sides = make_tls(certs=(kind, "ecdsa256"), files=((), crl), settings=settings)
        yield f", {kind} certificate of the user", sides, (*DOWN, Log(REFUSED, RESPONDER))
        sides = make_tls(alone=True, certs=("ecdsa256", kind), files=(crl, ()), settings=settings)
        yield f" alone, {kind} certificate of the gateway", sides, DOWN
    sides = make_tls(alone=True, initiator=gw({"remote": {"id": "c.interop.test"}}), settings=settings)
    yield " alone, gateway of another name", sides, DOWN
    sides = make_tls(eap_id=("c.interop.test", "%any"), settings=settings)
    yield ", user of another name", sides, DOWN


def _all() -> Iterator[Case]:
    for group in (_methods, _refusals, _connections, _life, _paths, _tls):
        yield from group()


EAP_CASES = tuple(Case(**{**vars(case), "slow": case.name not in QUICK_CASES}) for case in _all())
