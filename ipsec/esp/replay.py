"""The anti-replay window (RFC 4303 section 3.4.3) and the inference of the ESN high word (appendix A2)."""

from __future__ import annotations

INFERENCE_WINDOW = 64
"RFC 4303 infers the high word from a window even where anti-replay is off: this one then"


class ReplayWindow:
    """Which sequence numbers have been received: a bitmap of the ``size`` highest ones.

    Bit ``i`` says that ``highest - i`` was received. Numbers left of the window count as received, and so does every
    number up to the initial ``highest``: after a takeover a replay must not pass, even if a late packet is lost by it.
    0 is never fresh: the first packet of an SA has 1 (RFC 4303 section 3.3.3). With ``size`` 0 all else is.
    """

    def __init__(self, size: int, esn: bool, highest: int = 0) -> None:
        self.size = size
        self.esn = esn
        self.highest = highest
        self._mask = (1 << size) - 1
        self._received = self._mask

    def infer(self, low: int) -> int | None:
        """The whole sequence number whose low 32 bits are ``low`` (RFC 4303 appendix A2.2).

        None where the inference points before 0 or past 2^64-1: no packet has such a number.
        """
        if not self.esn:
            return low
        window = self.size or INFERENCE_WINDOW
        top_high, top_low = divmod(self.highest, 1 << 32)
        bottom = (top_low - window + 1) % (1 << 32)
        if top_low >= window - 1:
            high = top_high if low >= bottom else top_high + 1
        else:
            # the window spans two subspaces: its left part belongs to the one before
            high = top_high - 1 if low >= bottom else top_high
        return high << 32 | low if 0 <= high < 1 << 32 else None

    def fresh(self, seq: int) -> bool:
        """Whether ``seq`` is right of the window, or in it and not yet received."""
        if seq == 0:
            return False
        if not self.size or seq > self.highest:
            return True
        behind = self.highest - seq
        return behind < self.size and not self._received >> behind & 1

    def commit(self, seq: int) -> bool:
        """Record ``seq`` as received, after its ICV proved good; whether it is the highest so far."""
        if seq <= self.highest:
            if self.highest - seq < self.size:
                self._received |= 1 << (self.highest - seq)
            return False
        step = seq - self.highest
        # a step beyond the window forgets all of it; shifting by 2^63 bits is no way to do so
        self._received = (self._received << step | 1) & self._mask if step < self.size else self._mask & 1
        self.highest = seq
        return True
