"""Configuration: swanctl.conf in, frozen values out."""

from ipsec.config.schema import DEFAULT_FILE, Config, load, load_text

__all__ = ["DEFAULT_FILE", "Config", "load", "load_text"]
