"""Seeds for each use of randomness, derived from the run's seed: one stream can change without moving the others."""

import hashlib


def derive(seed: int, *parts: str | int) -> int:
    """A seed in [0, 2**63) that depends on ``seed`` and on what it is for, and on nothing else."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
