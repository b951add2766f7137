# IP addresses for Python.
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t

# An IPv4Address or IPv6Address.
cdef inline object address_to_python(const uint8_t *p, int version):
    from ipaddress import IPv4Address, IPv6Address

    if version == 4:
        return IPv4Address(PyBytes_FromStringAndSize(<const char *>p, 4))
    return IPv6Address(PyBytes_FromStringAndSize(<const char *>p, 16))
