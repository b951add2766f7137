"""ESP in memory: what the data path costs without devices, sockets and kernel. See bench/README.md."""
