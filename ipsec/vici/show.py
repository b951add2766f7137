"""IKE_SAs, CHILD_SAs and connections as vici describes them: the field names and strings that charon uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ipsec.crypto.revocation import Revocation
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.config import Action, ChildConfig, Connection, LocalAuth, RemoteAuth
from ipsec.ike.eap.names import vici_name
from ipsec.ike.lifetimes import reauth_due
from ipsec.ike.sa import IkeSa
from ipsec.wire import additional
from ipsec.wire.iana import Esn, TransformType
from ipsec.wire.proposal import Proposal, Transform

Message = dict[str, Any]


@dataclass(frozen=True)
class Traffic:
    """Counters of a CHILD_SA, and when it was used last in seconds ago; None is never."""

    bytes_in: int = 0
    packets_in: int = 0
    use_in: float | None = None
    bytes_out: int = 0
    packets_out: int = 0
    use_out: float | None = None
    drops: Mapping[str, int] = field(default_factory=dict)
    "packets of either direction by reason; reasons without any may be missing"


def ike_sa(sa: IkeSa, now: float) -> Message:
    """The fields of an IKE_SA, without its CHILD_SAs."""
    path = sa.path
    connection = sa.connection
    return {
        "uniqueid": sa.uid,
        "version": 2,
        "state": sa.state.value,
        "local-host": path.local,
        "local-port": path.local_port,
        "local-id": sa.our_id or "%any",
        "remote-host": path.remote,
        "remote-port": path.remote_port,
        "remote-id": sa.peer_id or "%any",
        # as charon, which does not say the same twice
        "remote-eap-id": sa.eap_id if sa.eap_id != sa.peer_id else None,
        "initiator": "yes" if sa.initiator else None,
        "replaced": None if sa.core.is_current(connection) else "yes",
        "initiator-spi": sa.spi_i.hex(),
        "responder-spi": sa.spi_r.hex(),
        "nat-local": "yes" if sa.nat_local else None,
        "nat-remote": "yes" if sa.nat_remote else None,
        "nat-fake": "yes" if sa.core.fakes_nat(connection) else None,
        "nat-any": "yes" if sa.core.encapsulates(sa) else None,
        **(ike_algorithms(sa.proposal) if sa.proposal is not None else {}),
        "ppk": "yes" if sa.ppk else None,
        "established": int(now - sa.established_at) if sa.established_at else None,
        "rekey-time": _until(sa.rekey_at, now) if sa.established and connection.rekey_time else None,
        "reauth-time": _until(_reauth_at(sa), now) if sa.established and _reauth_at(sa) else None,
        "local-vips": list(sa.addresses) or None,
        "remote-vips": [address for _, address in sa.leases] or None,
        "tasks-queued": [_task(request) for request in sa.queue] or None,
        "tasks-active": [_task(sa.pending.request)] if sa.pending is not None else None,
    }


def _reauth_at(sa: IkeSa) -> float:
    """When either end has to authenticate itself anew; 0: never."""
    return min(filter(None, (reauth_due(sa), sa.session_end)), default=0.0)


def _task(request: object) -> str:
    return _TASKS.get(type(request).__name__, type(request).__name__)


_TASKS = {
    "InitRequest": "IKE_INIT",
    "Intermediate": "IKE_INIT",
    **dict.fromkeys(
        ("AuthRequest", "RoundRequest", "EapAuthRequest", "EapRoundRequest", "EapRequest", "EapProof"), "IKE_AUTH"
    ),
    "CreateChild": "CHILD_CREATE",
    "RekeyIke": "IKE_REKEY",
    "DeleteIke": "IKE_DELETE",
    "DeleteChild": "CHILD_DELETE",
    "Liveness": "IKE_DPD",
    "UpdateAddresses": "IKE_MOBIKE",
    "Routability": "IKE_MOBIKE",
    "Announce": "IKE_MOBIKE",
}


def _until(when: float, now: float) -> int:
    return max(int(when - now), 0)


def algorithm(transform: Transform) -> str:
    """charon's name of an algorithm, without the size of its key."""
    return str(Transform(transform.type, transform.id))


def _encryption(proposal: Proposal) -> Message:
    encr, integ = proposal.first(TransformType.ENCR), proposal.first(TransformType.INTEG)
    found: Message = {}
    if encr is not None:
        found["encr-alg"] = algorithm(encr)
        found["encr-keysize"] = encr.key_bits or None
    if integ is not None and integ.id:
        found["integ-alg"] = algorithm(integ)
        found["integ-keysize"] = integ.key_bits or None
    return found


def ike_algorithms(proposal: Proposal) -> Message:
    """What protects an IKE_SA."""
    prf, ke = proposal.first(TransformType.PRF), proposal.first(TransformType.KE)
    return {
        **_encryption(proposal),
        "prf-alg": algorithm(prf) if prf is not None else None,
        "dh-group": algorithm(ke) if ke is not None and ke.id else None,
        **_further(proposal),
    }


def _further(proposal: Proposal) -> Message:
    """Additional key exchanges (RFC 9370)."""
    done = [t for t in proposal.transforms if t.type in additional.TYPES and t.id]
    return {f"ake{t.type - TransformType.ADDKE1 + 1}": algorithm(Transform(TransformType.KE, t.id)) for t in done}


def child_sa(child: ChildSa, traffic: Traffic, now: float) -> Message:
    """The fields of a CHILD_SA."""
    algorithms: Message = {}
    if child.proposal is not None:
        ke = child.proposal.first(TransformType.KE)
        esn = child.proposal.first(TransformType.ESN)
        algorithms = {
            **_encryption(child.proposal),
            "dh-group": algorithm(ke) if ke is not None and ke.id else None,
            **_further(child.proposal),
            "esn": "1" if esn is not None and esn.id == Esn.YES else None,
        }
    return {
        "name": child.name,
        "uniqueid": child.uid,
        "reqid": child.reqid,
        "state": child.state.value,
        "mode": child.mode.name,
        "protocol": "ESP",
        "encap": "yes" if child.encap else None,
        "spi-in": f"{child.spi_in:08x}",
        "spi-out": f"{child.spi_out:08x}",
        **algorithms,
        "bytes-in": traffic.bytes_in,
        "packets-in": traffic.packets_in,
        "use-in": int(traffic.use_in) if traffic.use_in is not None else None,
        "bytes-out": traffic.bytes_out,
        "packets-out": traffic.packets_out,
        "use-out": int(traffic.use_out) if traffic.use_out is not None else None,
        "rekey-time": _until(child.rekey_at, now) if child.rekey_at else None,
        "life-time": _until(child.expires_at, now) if child.expires_at else None,
        "install-time": int(now - child.installed_at),
        "local-ts": list(child.local_ts),
        "remote-ts": list(child.remote_ts),
    }


def connection(config: Connection) -> Message:
    """A connection as ``list-conn`` has it."""
    return {
        "local_addrs": list(config.local_addrs),
        "remote_addrs": list(config.remote_addrs),
        "local_port": config.local_port,
        "remote_port": config.remote_port,
        "version": "IKEv2",
        "reauth_time": int(config.reauth_time),
        "rekey_time": int(config.rekey_time),
        "unique": f"UNIQUE_{config.unique.name}",
        "proposals": _proposals(config.proposals),
        "dpd_delay": int(config.dpd_delay) or None,
        "ppk_id": config.ppk_id,
        "ppk_required": "yes" if config.ppk_required else None,
        **{f"local-{place}": _local(auth) for place, auth in enumerate(config.all_local, 1)},
        **{f"remote-{place}": _remote(auth) for place, auth in enumerate(config.all_remote, 1)},
        "children": {child.name: child_config(child) for child in config.children},
    }


#: charon's names of types of transforms, in its order
_TYPES = {
    TransformType.ENCR: "encr",
    TransformType.INTEG: "integ",
    TransformType.PRF: "prf",
    TransformType.KE: "ke",
    **{kind: f"ake{place}" for place, kind in enumerate(additional.TYPES, 1)},
    TransformType.ESN: "sn",
}


def _listed(transform: Transform) -> str:
    # the type says which of several key exchanges it is
    return str(Transform(TransformType.KE, transform.id) if transform.type in additional.TYPES else transform)


def _proposals(proposals: Sequence[Proposal]) -> Message:
    """Proposals by their place, each with the algorithms of every type."""
    found: Message = {}
    for place, proposal in enumerate(proposals):
        types = {name: [_listed(transform) for transform in proposal.of_type(kind)] for kind, name in _TYPES.items()}
        found[str(place)] = {name: algorithms for name, algorithms in types.items() if algorithms}
    return found


def _eap(auth: LocalAuth | RemoteAuth) -> Message:
    kind = vici_name(auth.eap_type) if auth.eap_type else None
    if isinstance(auth, RemoteAuth) and auth.eap_radius:
        kind = "EAP_RADIUS"
    return {"eap-type": kind, "eap_id": auth.eap_id}


def _local(auth: LocalAuth) -> Message:
    return {
        "class": auth.method.value,
        **_eap(auth),
        "id": auth.id or "%any",
        "aaa_id": auth.aaa_id,
        "groups": [],
        "cert_policy": [],
        "certs": _shown(auth),
        "cacerts": [],
    }


def _shown(auth: LocalAuth | RemoteAuth) -> list[Any]:
    """Subjects of what an end shows: a raw public key is of whom the connection says."""
    return [*(certificate.subject for certificate in auth.certs), *(auth.id or "%any" for _ in auth.pubkeys)]


#: what charon says where a configuration says this
_REVOCATION = {Revocation.STRICT: "GOOD", Revocation.IFURI: "SKIPPED"}


def _remote(auth: RemoteAuth) -> Message:
    return {
        "class": auth.method.value,
        **_eap(auth),
        "revocation": _REVOCATION.get(auth.revocation),
        "id": auth.id,
        "ca_id": auth.ca_id,
        "groups": list(auth.groups),
        "cert_policy": list(auth.cert_policy),
        "certs": _shown(auth),
        "cacerts": [certificate.subject for certificate in auth.cacerts],
    }


def _action(action: Action) -> str:
    words = [word for flag, word in ((Action.TRAP, "trap"), (Action.START, "start")) if flag in action]
    return " | ".join(words) or "none"


def child_config(config: ChildConfig) -> Message:
    """A child as ``list-conn`` has it."""
    return {
        "mode": config.mode.name,
        "rekey_time": int(config.rekey_time),
        "rekey_bytes": config.rekey_bytes,
        "rekey_packets": config.rekey_packets,
        "dpd_action": _action(config.dpd_action),
        "close_action": _action(config.close_action),
        # charon does not tell it; without it nobody knows whether a child that is not up is meant to be
        "ipsecd-start-action": _action(config.start_action).replace(" ", ""),
        "esp_proposals": _proposals(config.esp_proposals),
        "ah_proposals": {},
        "local-ts": list(config.local_ts),
        "remote-ts": list(config.remote_ts),
        "priority": config.priority or None,
    }


def policy(config: Connection, child: ChildConfig, reqid: int) -> Message:
    """A trap or shunt as ``list-policy`` has it."""
    return {
        "child": child.name,
        "reqid": reqid or None,
        "ike": config.name,
        "mode": child.mode.name,
        "local-ts": list(child.local_ts),
        "remote-ts": list(child.remote_ts),
    }
