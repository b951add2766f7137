"""An IPsec stack in user space for Linux (RFC 4301, RFC 4303): library, TUN backend and the daemon ``ipsecd``."""
