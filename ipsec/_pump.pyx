"""``Pump``: an engine's packets, between a TUN queue and sockets.

Imported through ``ipsec.esp.fast`` only.
"""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free

from ipsec._fastpath cimport Engine
from ipsec.fast.address cimport address_to_python
from ipsec.fast.atomic cimport add_u32, store_u8
from ipsec.fast.coalesce cimport Coalescer, coalesce_init
from ipsec.fast.inbox cimport INBOX_SIZE, InboxRecord, inbox_next, inbox_oldest
from ipsec.fast.memory cimport aligned_zero
from ipsec.fast.pump cimport *
from ipsec.fast.pump_state cimport *
from ipsec.fast.pump_thread cimport pump_forever

import os

_COUNTERS = (
    "tun_rx_frames", "tun_rx_packets", "tun_rx_bytes", "tun_tx_frames", "tun_tx_packets", "tun_tx_bytes",
    "net_rx_messages", "net_rx_datagrams", "net_rx_bytes", "net_rx_calls",
    "net_tx_messages", "net_tx_datagrams", "net_tx_bytes", "net_tx_calls",
    "bypass_tx_packets", "icmp_tx_packets", "keepalives", "control_datagrams", "control_lost",
    "gso_fallbacks", "tun_gso_fallbacks", "path_mtu_changes", "socket_full", "wakeups", "peer_sockets")

cdef class Pump:
    """Moves packets between one TUN queue and one set of sockets; the caller owns all descriptors, -1 is none.

    ``worker`` is this pump's number in its engine, 0 .. workers - 1; one pump is for one thread at a time.
    ``connected`` sockets have one peer (pairs of Unix sockets in memory): no addresses and no control data are used.
    ``peer_sockets``: in a thread, the peer that most goes to gets a socket of its own. It is given all that comes from
    there, whatever steers the others: one worker only.
    ``read_raw`` is False for all but one pump of a gateway: every raw socket is given every packet.
    """

    cdef PumpState *p
    cdef readonly Engine engine
    cdef readonly int event_fd
    cdef int wake_fd

    def __cinit__(self, Engine engine, unsigned int worker, *, int tun_fd, int udp4_fd=-1, int udp6_fd=-1,
                  int raw4_fd=-1, int raw6_fd=-1, int bypass4_fd=-1, int bypass6_fd=-1, bint vnet_hdr=False,
                  bint tun_tso=False, bint tun_uso=False, bint udp_gso=False, bint udp_gro=False,
                  bint coalesce_tcp=True, bint coalesce_udp=True, bint connected=False, read_raw=None,
                  unsigned int mark=0, bint peer_sockets=False):
        cdef PumpState *p
        cdef int i
        if worker >= engine.worker_count:
            raise ValueError(f"worker {worker} is not in 0..{engine.worker_count - 1}")
        self.engine = engine
        self.event_fd = self.wake_fd = -1
        p = self.p = <PumpState *>aligned_zero(sizeof(PumpState))
        p.worker = engine.workers[worker]
        p.tun_fd = tun_fd
        p.sockets[UDP4] = udp4_fd
        p.sockets[UDP6] = udp6_fd
        p.sockets[PEER4] = p.sockets[PEER6] = -1
        p.sockets[RAW4] = raw4_fd
        p.sockets[RAW6] = raw6_fd
        p.bypass[0] = bypass4_fd
        p.bypass[1] = bypass6_fd
        p.mark = mark
        p.vnet_hdr = vnet_hdr
        p.udp_gso = udp_gso and not connected
        p.udp_gro = udp_gro
        p.connected = connected
        p.peer_sockets = peer_sockets and not connected
        p.read_raw = worker == 0 if read_raw is None else read_raw
        p.sink.owner = p
        p.sink.room = pump_room
        p.sink.sealed = pump_sealed
        p.sink.batches = True
        p.sink.reply = pump_reply
        p.sink.clear = pump_clear
        p.frame = <uint8_t *>aligned_zero(FRAME_SIZE)
        p.train = <uint8_t *>aligned_zero(TRAIN_SIZE)
        p.out_control = <uint8_t *>aligned_zero(MESSAGES * CONTROL_SIZE)
        p.slots = <uint8_t *>aligned_zero(RX_WIDE * RX_SLOT)
        p.names = <uint8_t *>aligned_zero(RX_WIDE * 32)
        p.in_control = <uint8_t *>aligned_zero(RX_WIDE * CONTROL_SIZE)
        p.plain = <uint8_t *>aligned_zero(PLAIN_SIZE)
        p.inbox.data = <uint8_t *>aligned_zero(INBOX_SIZE)
        p.coalescer = <Coalescer *>aligned_zero(sizeof(Coalescer))
        coalesce_init(p.coalescer, vnet_hdr, coalesce_tcp and tun_tso, coalesce_udp and tun_uso)
        for i in range(RX_WIDE):
            p.in_iov[i].iov_base = rx_slot(p, i)
            p.in_iov[i].iov_len = RX_SLOT - ESP_SHIFT
            p.incoming[i].msg_hdr.msg_name = p.names + i * 32
            p.incoming[i].msg_hdr.msg_iov = &p.in_iov[i]
            p.incoming[i].msg_hdr.msg_iovlen = 1
            p.incoming[i].msg_hdr.msg_control = p.in_control + i * CONTROL_SIZE
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        p.event_fd = self.event_fd
        p.wake_fd = self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __dealloc__(self):
        cdef PumpState *p = self.p
        if p != NULL:    # else the arguments were wrong, and there are no descriptors yet
            if self.event_fd >= 0:
                os.close(self.event_fd)
            if self.wake_fd >= 0:
                os.close(self.wake_fd)
            for memory in (<uintptr_t>p.frame, <uintptr_t>p.train, <uintptr_t>p.out_control, <uintptr_t>p.slots,
                           <uintptr_t>p.names, <uintptr_t>p.in_control, <uintptr_t>p.plain, <uintptr_t>p.inbox.data,
                           <uintptr_t>p.coalescer, <uintptr_t>p):
                free(<void *><uintptr_t>memory)

    def run_tun(self, unsigned int budget=64):
        """Read the TUN device up to ``budget`` times. Bits: 1 more is waiting, 2 a socket is full, 4 the device is gone."""
        cdef int result
        add_u32(&self.engine.running, 1)
        with nogil:
            result = pump_tun(self.p, budget)
        add_u32(&self.engine.running, <uint32_t>-1)
        return result

    def run_sockets(self, unsigned int budget=16):
        """Receive from each socket up to ``budget`` times. Bits: 1 more is waiting, 4 the device is gone."""
        cdef int result = 0
        cdef int i
        add_u32(&self.engine.running, 1)
        with nogil:
            for i in range(SOCKETS):
                if self.p.sockets[i] >= 0 and (i < RAW4 or self.p.read_raw):
                    result |= pump_socket(self.p, i, budget)
        add_u32(&self.engine.running, <uint32_t>-1)
        return result

    def run_forever(self, int stop_fd, unsigned int busy_poll_us=0):
        """A worker thread: run without the GIL until ``stop_fd`` becomes readable."""
        add_u32(&self.engine.running, 1)
        with nogil:
            pump_forever(self.p, stop_fd, <uint64_t>busy_poll_us * 1000)
        add_u32(&self.engine.running, <uint32_t>-1)

    def wake(self):
        """Let ``run_forever`` look at once at what waits for an SA, either way; without it the next ``run_tun`` does."""
        os.eventfd_write(self.wake_fd, 1)

    def blocked_fd(self):
        """The socket that had no room for the last message, or -1."""
        return self.p.sockets[self.p.blocked - 1] if self.p.blocked else -1

    def discard(self, *, bint held=False):
        """Count what waits for a socket as dropped, for nobody will send it; with ``held`` also what waits for an SA.
        Not while the pump runs."""
        pump_discard(self.p, held)

    def datagrams(self, unsigned int limit=0xFFFFFFFF):
        """What is not ESP, oldest first, at most ``limit``: (data, (source address, port) or None, local address or None,
        descriptor)."""
        cdef PumpState *p = self.p
        cdef InboxRecord *r
        result = []
        while limit:
            r = inbox_oldest(&p.inbox)
            if r == NULL:
                break
            limit -= 1
            source = None
            if r.version:
                source = (str(address_to_python(r.source, r.version)), r.port)
            local = str(address_to_python(r.local, r.local_version)) if r.local_version else None
            result.append((PyBytes_FromStringAndSize(<char *>r + sizeof(InboxRecord), r.length), source, local, r.fd))
            inbox_next(&p.inbox, r)
        return result

    def forget_df(self):
        """Somebody else has changed DF of the sockets: it is set anew before the next packet."""
        cdef int i
        for i in range(SOCKETS):
            store_u8(&self.p.df_state[i], 0)

    def counters(self):
        """Counters since the pump was made, by name."""
        cdef int i
        return {_COUNTERS[i]: self.p.counters[i] for i in range(COUNTERS)}

    def batches(self):
        """System calls by the datagrams that each received ("in") or sent ("out"): of 1, 2, up to 4, up to 8, ..., more."""
        cdef int i
        return {"in": [self.p.batches[0][i] for i in range(BATCHES)],
                "out": [self.p.batches[1][i] for i in range(BATCHES)]}

    def offloads(self):
        """Which offloads are in use now, after what failed at run time was switched off."""
        return {"vnet_hdr": self.p.vnet_hdr != 0, "udp_gso": self.p.udp_gso != 0,
                "coalesce_tcp": self.p.coalescer.tcp_on != 0, "coalesce_udp": self.p.coalescer.udp_on != 0}

    def set_offload(self, str name, bint on):
        """Switch ``udp_gso``, ``coalesce_tcp`` or ``coalesce_udp`` while running. ValueError for any other name."""
        if name == "udp_gso":
            self.p.udp_gso = on and not self.p.connected
            self.p.gso_retry_ns = 0
        elif name == "coalesce_tcp":
            self.p.coalescer.tcp_on = on and self.p.vnet_hdr
        elif name == "coalesce_udp":
            self.p.coalescer.udp_on = on and self.p.vnet_hdr
        else:
            raise ValueError(f"offload {name!r} is none of udp_gso, coalesce_tcp, coalesce_udp")
