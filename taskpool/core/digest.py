"""What stands in for chance in the core: bytes that nobody could tell from chance, and that are the same in each replay."""

from __future__ import annotations


def digest(data: bytes, size: int) -> bytes:
    """Return `size` bytes (1 to 64) that depend on all of the data."""
    from hashlib import blake2b  # with OpenSSL 3 ms and 4 MB, which few pools need

    return blake2b(data, digest_size=size).digest()
