import hashlib

from ser_lightning.utils.seeds import hash_seed


def test_a_seed_is_the_first_seven_bytes_of_a_hash_that_any_tool_can_make():
    digest = hashlib.blake2b(b"0:generate:17", digest_size=7).hexdigest()
    assert hash_seed(0, "generate", 17) == int(digest, 16)
    assert hash_seed(0, "generate", 17) == 0x3298D2BD3D6370  # `printf %s 0:generate:17 | b2sum -l 56`


def test_every_part_and_their_order_count():
    parts = [(0, "a", 1), (1, "a", 0), (0, "b", 1), (0, "a"), (0, "a", 1, 0), ("0a", 1)]
    assert len({hash_seed(*one) for one in parts}) == len(parts)
    assert all(0 <= hash_seed(i) < 2**56 for i in range(100))
