"""What was recorded in a session. tshark reads it in one go, for it takes longer to start than a case to run."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

FIELDS = ("frame.number", "frame.protocols", "_ws.malformed", "_ws.expert.severity", "_ws.expert.message")
ERROR = 0x800000
PCAP_HEADER = 24


@dataclass
class Recordings:
    """All that was recorded; which case it was of."""

    folder: Path
    names: list[tuple[str, int, bytes]] = field(default_factory=list)

    def add(self, name: str, pcap: Path) -> None:
        """Keep a recording for the end."""
        data = pcap.read_bytes()
        frames, at = 0, PCAP_HEADER
        while at < len(data):
            at += 16 + int.from_bytes(data[at + 8 : at + 12], "little")
            frames += 1
        self.names.append((name, frames, data))

    def complaints(self) -> list[str]:
        """What tshark finds malformed, with the name of the case."""
        if not self.names:
            return []
        path = self.folder / "all.pcap"
        with path.open("wb") as file:
            file.write(self.names[0][2][:PCAP_HEADER])
            for _, _, data in self.names:
                file.write(data[PCAP_HEADER:])
        fields = [option for name in FIELDS for option in ("-e", name)]
        command = ["tshark", "-n", "-r", str(path), "-T", "fields", "-E", "separator=|", *fields]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        owners = [name for name, frames, _ in self.names for _ in range(frames)]
        lines = done.stdout.splitlines()
        assert len(lines) == len(owners), f"{len(lines)} lines for {len(owners)} frames\n{done.stderr}"
        found = []
        for owner, line in zip(owners, lines, strict=True):
            _, protocols, malformed, severity, _ = line.split("|", 4)
            levels = [int(level, 0) for level in severity.split(",") if level]
            ours = any(word in protocols for word in ("isakmp", "esp", "udpencap"))
            if malformed or any(level >= ERROR for level in levels) or ("udp" in protocols and not ours):
                found.append(f"{owner}: {line}")
        return found
