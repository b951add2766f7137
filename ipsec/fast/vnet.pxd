# struct virtio_net_hdr, which precedes each packet on a TUN device with IFF_VNET_HDR. Fields are in host byte order.
# Virtual I/O Device 1.2 section 5.1.6; linux/virtio_net.h.
from libc.stdint cimport uint8_t, uint16_t

cdef enum:
    VNET_HDR_SIZE = 10
    VNET_NEEDS_CSUM = 1      # flags
    VNET_DATA_VALID = 2
    VNET_GSO_NONE = 0        # gso_type
    VNET_GSO_TCPV4 = 1
    VNET_GSO_TCPV6 = 4
    VNET_GSO_UDP_L4 = 5
    VNET_GSO_ECN = 0x80      # or-ed to a TCP type: CWR is set

cdef packed struct VnetHdr:
    uint8_t flags
    uint8_t gso_type
    uint16_t hdr_len
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset
