"""Coverage-guided fuzzing of everything that comes from outside (``make fuzz``).

    python -m tests.fuzz [--seconds N] [TARGET...]     each target for N seconds, 60 unless said otherwise
    python -m tests.fuzz --replay FILE TARGET          one input again

What is interesting is kept in .fuzz/TARGET and is where the next run begins. An input that fails is
.fuzz/TARGET.crash-*, and makes exit status 1.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent.parent.parent / ".fuzz"
#: an input that takes longer than this, in seconds, or more memory than this, in MiB, is a find as well
SLOWEST_S = 5
MEMORY_MIB = 2048


def main() -> int:
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz what comes from outside.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input through the target")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.targets if name not in TARGETS]
    if unknown:
        parser.error(f"no target {', '.join(unknown)}: there are {', '.join(TARGETS)}")
    if arguments.replay:
        for name in arguments.targets:
            TARGETS[name].run(arguments.replay.read_bytes())
        return 0
    failed = [name for name in arguments.targets or TARGETS if not fuzz(name, TARGETS[name].seeds(), arguments.seconds)]
    for name in failed:
        print(f"{name}: see {FOLDER}/{name}.log and {FOLDER}/{name}.crash-*", file=sys.stderr)
    return 1 if failed else 0


def fuzz(name: str, seeds: list[bytes], seconds: int) -> bool:
    """Run one target in a process of its own; whether it held."""
    corpus = FOLDER / name
    corpus.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(seeds):
        (corpus / f"seed-{index}").write_bytes(seed)
    begin = time.monotonic()
    print(f"{name:16} {seconds} s ...", end="", flush=True)
    with (FOLDER / f"{name}.log").open("wb") as log:
        status = subprocess.run(
            [
                *(sys.executable, "-m", "tests.fuzz.guided", name, str(corpus)),
                f"-max_total_time={seconds}",
                f"-timeout={SLOWEST_S}",
                f"-rss_limit_mb={MEMORY_MIB}",
                f"-artifact_prefix={FOLDER}/{name}.",
                "-print_final_stats=1",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    said = (FOLDER / f"{name}.log").read_text(errors="replace")
    inputs = re.findall(r"number_of_executed_units: *(\d+)", said)
    count = inputs[-1] if inputs else "?"
    print(f"\r{name:16} {'held' if status == 0 else 'FAILED'}, {count} inputs in {time.monotonic() - begin:.0f} s")
    return status == 0


if __name__ == "__main__":
    sys.exit(main())
