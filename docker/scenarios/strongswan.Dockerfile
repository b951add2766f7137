# The peer of the scenarios with strongSwan: Debian's charon with ESP in user space.
ARG BASE=docker.io/library/debian:bookworm-slim
FROM ${BASE}
RUN set -e; export DEBIAN_FRONTEND=noninteractive; apt-get update -q; \
    apt-get install -q -y --no-install-recommends strongswan-charon strongswan-swanctl libcharon-extra-plugins \
        libstrongswan-standard-plugins libstrongswan-extra-plugins; \
    rm -rf /var/lib/apt/lists/*
ENTRYPOINT ["/usr/lib/ipsec/charon"]
