"""Other bytes of the same size and the same xxh3-64, in microseconds: it is a checksum, not a cryptographic hash.

Of inputs above 240 bytes every stripe of 64 bytes is added to eight sums of 64 bits: a word w of lane i, xored with a
word of the secret to (high, low), adds high · low to sum i and w to sum i ^ 1. Five stripes of one block give enough
freedom to add the same as before with other words. Source: xxHash 0.8, xxh3 long hash, default secret.
"""

import struct

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
STRIPE, BLOCK = 64, 1024
STRIPES = 5  # that are changed
M32, M64 = 2**32 - 1, 2**64 - 1


def second_preimage(payload: bytes, start: int = 0, lane: int = 0) -> bytes:
    """``payload`` with other bytes in ``lane`` of the first five stripes from ``start`` on that lie in one block.

    What is changed lies before ``start`` + 1024 and before the last 64 bytes.
    """
    first = -(-start // STRIPE)
    if first % (BLOCK // STRIPE) > BLOCK // STRIPE - STRIPES:
        first = -(-first * STRIPE // BLOCK) * BLOCK // STRIPE
    places = [STRIPE * (first + n) + 8 * lane for n in range(STRIPES)]
    if places[-1] + 8 > len(payload) - STRIPE:
        raise ValueError(f"{len(payload)} bytes are too few")
    masks = [_word(SECRET, 8 * (place // STRIPE % (BLOCK // STRIPE)) + 8 * lane) for place in places]
    words = [_word(payload, place) for place in places]
    products = sum(((w ^ m) >> 32) * ((w ^ m) & M32) for w, m in zip(words, masks, strict=True))
    new = _words(products & M64, sum(words) & M64, masks)
    forged = bytearray(payload)
    for place, word in zip(places, new, strict=True):
        struct.pack_into("<Q", forged, place, word)
    return bytes(forged)


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def _words(products: int, total: int, masks: list[int]) -> list[int]:
    """Five words whose products add up to ``products``, and that add up to ``total``, both modulo 2⁶⁴.

    high · 1 + high · 2³¹ + high · 2³¹ make the products; a word without high half, and one without low half, which
    add nothing to them, make the two halves of the total.
    """
    quotient, rest = divmod(products, 2**31)
    if quotient > 2 * M32:
        quotient, rest = quotient - 1, rest + 2**31
    one = min(quotient, M32)
    pairs = [(rest, 1), (one, 2**31), (quotient - one, 2**31)]
    words = [(high << 32 | low) ^ mask for (high, low), mask in zip(pairs, masks, strict=False)]
    left = total - sum(words)
    no_low = masks[4] & M32  # the low half of a word that has none once it is xored
    no_high = masks[3] >> 32 << 32 | (left - no_low) & M32
    return [*words, no_high, (left - no_high - no_low) >> 32 << 32 & M64 | no_low]
