"""The garbage collector while a daemon runs, and what makes it unnecessary for IKE_SAs."""

from __future__ import annotations

import gc

from ipsec.daemon.collector import Collector
from ipsec.ike.child_sa import ChildSa
from ipsec.ike.sa import IkeSa
from tests.pair import Pair


def test_what_is_there_is_left_alone_until_stop() -> None:
    before, callbacks = gc.get_threshold(), len(gc.callbacks)
    collector = Collector()
    try:
        collector.start()
        frozen = gc.get_freeze_count()
        assert frozen > 0
        kept = [[] for _ in range(1000)]
        gc.collect()
        assert gc.get_freeze_count() >= frozen + len(kept)
        collector.start()
        assert len(gc.callbacks) == callbacks + 1
    finally:
        collector.stop()
    collector.stop()
    assert (gc.get_threshold(), len(gc.callbacks), gc.get_freeze_count()) == (before, callbacks, 0)


def test_an_sa_that_is_forgotten_leaves_no_cycle() -> None:
    pair = Pair()
    pair.up()
    gc.collect()
    gc.disable()
    try:
        assert sum(isinstance(found, IkeSa | ChildSa) for found in gc.get_objects()) >= 4
        uids = {sa.uid for host in (pair.a, pair.b) for sa in host.engine.sas.values()}
        assert uids
        for host in (pair.a, pair.b):
            host.seen.clear()
            for sa in list(host.engine.sas.values()):
                sa.destroy("test", pair.world.now)
            del sa
            while host.engine.next_event() is not None:
                pass
            host.inbound.clear()
            host.outbound.clear()
        left = [found for found in gc.get_objects() if isinstance(found, IkeSa | ChildSa)]
        assert left == []
    finally:
        gc.enable()
