"""EAP by way of RADIUS (RFC 3579), sans-IO: a conversation in ``exchange``, who is asked and when in ``requests``."""
