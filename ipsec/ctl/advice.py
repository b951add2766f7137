"""What can be done about each cause of failure; and what cause a charon's log speaks of, which names none."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: by ``cause`` of a problem (``ipsec.ike.failure.Cause``)
ADVICE = {
    "no-answer": "is the peer up, and do firewalls on the way let UDP 500 and 4500 through? Its log says whether "
    "anything reaches it",
    "half-open-timeout": "the peer began and did not go on: its log says why; large certificates may be lost in "
    "fragments (fragmentation = yes)",
    "proposal-mismatch-ike": "`proposals` of the two ends need an algorithm of each kind in common; the peer may also "
    "have no connection for these addresses",
    "proposal-mismatch-child": "`esp_proposals` of the two ends need an algorithm of each kind in common, also a key "
    "exchange in both or in none",
    "ts-mismatch": "`local_ts` here has to overlap with `remote_ts` there, and the other way round",
    "local-auth-failed": "compare `local.id` and the secret or certificate here with what the peer expects, and "
    "`remote.id` with who it is; its log says what it does not like",
    "peer-auth-failed": "compare the secrets of both ends, and `remote.auth` here with how the peer authenticates",
    "peer-identity": "compare `remote.id` here with `local.id` at the peer, and `local.id` here with whom it asks for, "
    "its `remote.id`",
    "certificate": "the peer's certificate needs an issuer in x509ca/, to be valid now (do the clocks agree?) and not "
    "revoked, and to have the peer's identity among its names",
    "unique-keep": "the peer is connected already: `unique` says what is to happen then",
    "no-connection": "no connection has these addresses: compare `local_addrs` and `remote_addrs`",
    "vip-failure": "`pools` of the connection at the responder: is there one, and has it a free address?",
    "install-child-sa-failed": "the daemon's log says what the data path did not like",
    "no-path": "does the name of the peer resolve, is there a route to it, and is `local_addrs` an address of this "
    "host?",
    "malformed": "the two ends disagree on the protocol: please report it with a capture",
    "refused": "the peer's log says more",
    "peer-restarted": "nothing: it comes up again as `dpd_action` or a trap says",
    "closed-by-peer": "the peer closed it: its log says why",
    "expired": "rekeying did not succeed in time: the log says why",
    "radius-not-responding": "do the servers of ipsecd.radius run, do they have this host as a client with the same "
    "secret, and does UDP 1812 reach them? ipsecctl doctor",
    "internal-error": "this is a bug: please report it with the daemon's log",
}

#: charon's words, the most telling first
_WORDS = (
    (r"NO_PROPOSAL_CHOSEN notify, no CHILD_SA|no acceptable (proposal|\w+ALGORITHM).*CHILD", "proposal-mismatch-child"),
    (r"TS_UNACCEPTABLE|traffic selectors .* inacceptable", "ts-mismatch"),
    (r"INTERNAL_ADDRESS_FAILURE|no virtual IP found|FAILED_CP_REQUIRED", "vip-failure"),
    (r"NO_PROPOSAL_CHOSEN|no proposal found|no acceptable", "proposal-mismatch-ike"),
    (r"no (private|shared) key found|no shared key|AUTHENTICATION_FAILED notify", "local-auth-failed"),
    (
        r"no trusted .* public key|certificate .*(expired|revoked|not yet valid)|subject certificate invalid",
        "certificate",
    ),
    (r"tried \d+ shared keys?|MAC mismatch|signature validation failed", "peer-auth-failed"),
    (r"constraint check failed|does not match|no matching peer config", "peer-identity"),
    (r"unable to resolve|no way to|no address of this host|no route to|unreachable|error writing to", "no-path"),
    (r"unable to install|installing .* failed", "install-child-sa-failed"),
    (r"giving up after|peer not responding|no answer|retransmit \d+ of request", "no-answer"),
)


def cause_in_log(lines: Iterable[str]) -> tuple[str, str]:
    """The cause that lines of a log speak of, and the line that does; both empty if none does."""
    lines = list(lines)
    for words, cause in _WORDS:
        for line in reversed(lines):
            if re.search(words, line):
                return cause, line
    return "", ""
