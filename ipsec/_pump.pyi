from ipsec._fastpath import Engine

class Pump:
    @property
    def engine(self) -> Engine: ...
    @property
    def event_fd(self) -> int: ...
    def __init__(
        self,
        engine: Engine,
        worker: int,
        *,
        tun_fd: int,
        udp4_fd: int = ...,
        udp6_fd: int = ...,
        raw4_fd: int = ...,
        raw6_fd: int = ...,
        bypass4_fd: int = ...,
        bypass6_fd: int = ...,
        vnet_hdr: bool = ...,
        tun_tso: bool = ...,
        tun_uso: bool = ...,
        udp_gso: bool = ...,
        udp_gro: bool = ...,
        coalesce_tcp: bool = ...,
        coalesce_udp: bool = ...,
        connected: bool = ...,
        read_raw: bool | None = ...,
        mark: int = ...,
    ) -> None: ...
    def run_tun(self, budget: int = ...) -> int: ...
    def run_sockets(self, budget: int = ...) -> int: ...
    def run_forever(self, stop_fd: int, busy_poll_us: int = ...) -> None: ...
    def blocked_fd(self) -> int: ...
    def datagrams(self) -> list[tuple[bytes, tuple[str, int] | None, str | None, int]]: ...
    def counters(self) -> dict[str, int]: ...
    def offloads(self) -> dict[str, bool]: ...
    def set_offload(self, name: str, on: bool) -> None: ...
