"""IKEv2 handshakes: how many, how soon, in how much memory, and who waits meanwhile. See bench/README.md."""
