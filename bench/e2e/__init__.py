"""Whole tunnels between two network namespaces, measured side by side. See bench/README.md."""
