"""Ids that sort by time, so that the ledger appends instead of scattering. Pure: both the time and
the random bits are arguments."""

from __future__ import annotations


def make_id(now_s: float, random_bits: int) -> str:
    """A UUID of version 7 (RFC 9562 §5.7): 48 bits of milliseconds, then random bits."""
    value = (int(now_s * 1000) & (1 << 48) - 1) << 80 | random_bits & (1 << 80) - 1
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
