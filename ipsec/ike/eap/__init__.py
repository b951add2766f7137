"""EAP (RFC 3748) in both roles, sans-IO: one method per file, who talks when in ``peer`` and ``server``."""
