"""The metrics there are: names, kinds, labels and what they mean. docs/metrics.md is made from this."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from prometheus_client.samples import Sample

Row = tuple[Sequence[object], float]
"labels in the family's order, and the value"


class Series(NamedTuple):
    """One metric with its samples, which are made while they are asked for."""

    name: str
    kind: str
    help: str
    samples: Iterable[Sample]


@dataclass(frozen=True)
class Family:
    """A metric as it is documented. ``name`` is as OpenMetrics has it, without ``_total`` of counters and ``_info``."""

    name: str
    kind: str
    "gauge, counter, histogram or info"
    help: str
    labels: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """As a query names it."""
        return self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")

    def series(self, rows: Iterable[Row]) -> Series:
        """The metric with these rows; one without labels may have one only."""
        return Series(self.name, self.kind, self.help, self._samples(rows))

    def histogram(self, rows: Iterable[tuple[Sequence[object], Sequence[int], float]]) -> Series:
        """The metric, of rows of labels, counts by power of two as bound, the last without bound, and sum."""
        return Series(self.name, self.kind, self.help, self._buckets(rows))

    def _buckets(self, rows: Iterable[tuple[Sequence[object], Sequence[int], float]]) -> Iterator[Sample]:
        for values, counts, total in rows:
            labels = dict(zip(self.labels, map(str, values), strict=True))
            bounds = [str(float(1 << power)) for power in range(len(counts) - 1)]
            for bound, count in zip([*bounds, "+Inf"], accumulate(counts), strict=True):
                yield Sample(f"{self.name}_bucket", {**labels, "le": bound}, count)
            yield Sample(f"{self.name}_count", labels, sum(counts))
            yield Sample(f"{self.name}_sum", labels, total)

    def _samples(self, rows: Iterable[Row]) -> Iterator[Sample]:
        shown, names = self.shown, self.labels
        for labels, value in rows:
            yield Sample(shown, dict(zip(names, map(str, labels), strict=True)), value)


FAMILIES: dict[str, Family] = {}


def _family(kind: str, name: str, help: str, *labels: str) -> Family:
    family = FAMILIES[name] = Family(f"ipsecd_{name}", kind, help, labels)
    return family


_CONNECTION = ("connection",)
_CHILD = ("connection", "child")

# -- the daemon

BUILD = _family("info", "build", "Always 1; the labels tell what runs.", "version", "python", "machine", "device")
READY = _family("gauge", "ready", "1 if /readyz says yes.")
HEALTHY = _family("gauge", "healthy", "1 if /healthz says yes.")
LAG = _family("histogram", "event_loop_lag_seconds", "How late timers of the event loop are, looked at twice a second.")
CERTIFICATE = _family(
    "gauge",
    "certificate_expiry_timestamp_seconds",
    "When a certificate that is loaded ends: one of ours (own), a trust anchor (ca) or that of a peer (peer).",
    *("subject", "serial", "kind"),
)
POOL_SIZE = _family("gauge", "pool_addresses", "Virtual addresses of a pool.", "pool")
POOL_LEASES = _family("gauge", "pool_leases", "Those in use (online), and kept for who may come back (offline).",
                      "pool", "state")  # fmt: skip

RADIUS = _family(
    "counter",
    "radius",
    "Requests to a RADIUS server (auth: who somebody is; acct: accounting, accepts are receipts), what came of them.",
    *("server", "kind", "result"),
)
RADIUS_ANSWERS = _family("gauge", "radius_answers", "0 if the server has not answered when it was asked last.",
                         "server", "kind")  # fmt: skip
EAP = _family("counter", "eap", "Peers that have used EAP with us; none: before any method.", "method", "result")

# -- connections

CONFIGURED = _family("gauge", "connection_configured", "Always 1: this connection is loaded.", *_CONNECTION)
IKE_SAS = _family("gauge", "ike_sas", "Established IKE_SAs.", *_CONNECTION)
IKE_UP = _family("counter", "ike_established", "IKE_SAs that were established, not by rekeying.", *_CONNECTION)
IKE_REKEYS = _family("counter", "ike_rekeys", "IKE_SAs that took the place of another by rekeying.", *_CONNECTION)
RETRANSMITS = _family("counter", "ike_retransmits", "Requests of ours sent again.", *_CONNECTION)
FAILURES = _family("counter", "failures", "What did not come up, or went down; without a connection: strangers.",
                   *_CONNECTION, "cause")  # fmt: skip

# -- children

CHILD_CONFIGURED = _family("gauge", "child_configured", "Always 1: this child is loaded.", *_CHILD)
CHILD_WANTED = _family("gauge", "child_wanted", "1 if it is to be up: start_action has start.", *_CHILD)
CHILD_UP = _family("gauge", "child_up", "1 if a CHILD_SA carries its traffic, with one peer or more.", *_CHILD)
CHILD_SAS = _family("gauge", "child_sas", "CHILD_SAs that carry its traffic.", *_CHILD)
CHILD_STARTS = _family("counter", "child_established", "CHILD_SAs that came up, not by rekeying.", *_CHILD)
CHILD_REKEYS = _family("counter", "child_rekeys", "CHILD_SAs that took the place of another by rekeying.", *_CHILD)
CHILD_BYTES = _family("counter", "child_bytes", "Octets of inner packets.", *_CHILD, "direction")
CHILD_PACKETS = _family("counter", "child_packets", "ESP packets that were good.", *_CHILD, "direction")
CHILD_LAST = _family("gauge", "child_last_packet_timestamp_seconds", "When the last good packet came or went.",
                     *_CHILD, "direction")  # fmt: skip
CHILD_DROPS = _family("counter", "child_drops", "Packets dropped by an SA; a reason appears with the first one.",
                      *_CHILD, "reason")  # fmt: skip
SA_BYTES = _family("counter", "manual_sa_bytes", "Octets of inner packets of a manual SA.", "sa", "direction")
SA_PACKETS = _family("counter", "manual_sa_packets", "ESP packets of a manual SA that were good.", "sa", "direction")
SA_DROPS = _family("counter", "manual_sa_drops", "Packets dropped by a manual SA; a reason appears with the first one.",
                   "sa", "reason")  # fmt: skip

# -- IKEv2

HALF_OPEN = _family("gauge", "ike_half_open", "IKE_SAs as responder whose initiator is not authenticated yet.")
HALF_OPEN_LIMIT = _family("gauge", "ike_half_open_limit", "How many there may be.")
REFUSED = _family("counter", "ike_half_open_refused", "Initiators for whom there was no room.")
COOKIES = _family("counter", "ike_cookies", "Cookies that we asked for (asked), and that came (good, wrong).", "result")
MESSAGES = _family("counter", "ike_messages", "Messages, each once, however often it was sent.",
                   "exchange", "direction", "kind")  # fmt: skip
INVALID = _family("counter", "ike_invalid", "Datagrams that make no sense (message), or of no IKE_SA of ours (spi).",
                  "what")  # fmt: skip
COLLISIONS = _family("counter", "ike_collisions", "SAs that both ends rekeyed at once.", "what")
HANDSHAKE = _family("histogram", "ike_handshake_seconds",
                    "From the first message to the established IKE_SA, by our role.", "role")  # fmt: skip
IKE_DATAGRAMS = _family("counter", "ike_datagrams", "Datagrams of IKE, and what became of them.", "what")

# -- the data path

DROPS = _family("counter", "drops", "Packets dropped, of SAs that are gone too.", "direction", "reason")
TUN_PACKETS = _family("counter", "tun_packets", "Packets read from the TUN device (out) or written to it (in).",
                      "direction")  # fmt: skip
TUN_BYTES = _family("counter", "tun_bytes", "Octets of them.", "direction")
TUN_FRAMES = _family("counter", "tun_frames", "Reads or writes: one superframe holds many packets.", "direction")
NET_DATAGRAMS = _family("counter", "net_datagrams", "Datagrams of ESP that came in or went out.", "direction")
NET_BYTES = _family("counter", "net_bytes", "Octets of them, without IP and UDP headers.", "direction")
NET_TRAINS = _family("counter", "net_trains", "Trains of them: one holds many datagrams (UDP_GRO, UDP_SEGMENT).",
                     "direction")  # fmt: skip
NET_CALLS = _family("counter", "net_calls", "System calls for them: one moves many trains.", "direction")
BATCH = _family("histogram", "batch_datagrams", "Datagrams that one system call received or sent.",
                "direction")  # fmt: skip
EVENTS = _family("counter", "path_events", "Other things that the data path counts.", "event")
OFFLOAD = _family("gauge", "offload_in_use", "1 if the data path uses this offload now.", "offload")
PROVIDER = _family("info", "crypto_provider", "Always 1; which library does a suite of ESP that is in use.",
                   "suite", "provider")  # fmt: skip
WORKERS = _family("gauge", "workers", "Threads that move packets; 0: the event loop does.")

#: counters of the pumps that are each an event of their own
PATH_EVENTS = {
    "bypass_tx_packets": "bypass",
    "icmp_tx_packets": "icmp_error",
    "keepalives": "nat_keepalive",
    "control_datagrams": "control_datagram",
    "control_lost": "control_datagram_lost",
    "gso_fallbacks": "udp_gso_refused",
    "tun_gso_fallbacks": "tun_superframe_refused",
    "path_mtu_changes": "path_mtu_change",
    "socket_full": "socket_full",
    "wakeups": "wakeup",
    "peer_sockets": "peer_socket",
}
