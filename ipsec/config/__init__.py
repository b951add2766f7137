"""Configuration: swanctl.conf in, frozen values out.

What reads a whole configuration is imported when it is first asked for: ``ipsecd healthcheck`` wants settings alone,
and wants them soon.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipsec.config.schema import Config, load, load_again, load_text

__all__ = ["DEFAULT_FILE", "Config", "load", "load_again", "load_text"]

DEFAULT_FILE = "/etc/swanctl/swanctl.conf"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ipsec.config import schema

    return getattr(schema, name)
