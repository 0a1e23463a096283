"""Random seeds that are a pure function of what they are for: the same in a resumed run and on every rank."""

import hashlib


def hash_seed(*parts: object) -> int:
    """A seed of 56 bits from names and numbers, equal on every machine."""
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")
