"""The sandbox's language: how it counts tokens and what it says.

Pure, and deterministic: the same request always costs the same and reads the same. One output
token is one word. Forbidden here: HTTP, and real tokenizers; whoever tests against the sandbox must
be able to work out a cost by hand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from budget_proxy.sandbox.settings import Settings

BYTES_PER_TOKEN = 4

# fmt: off
_WORDS = (
    "the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while",
    "seven", "wise", "owls", "watch", "from", "an", "old", "oak", "tree",
)
# fmt: on


def input_tokens(settings: Settings, *, body_bytes: int, text_bytes: int, given: int = 0) -> int:
    """How many tokens a request is: by its text, or in mode `bytes` by every byte of its body.

    `given` are tokens that the caller counted already (an embeddings request may hold token ids).
    Mode `bytes` is the worst case that a byte-level tokenizer can reach, but for a hidden prompt.
    """
    if settings.tokens == "bytes":
        return max(1, body_bytes) + settings.hidden_tokens
    return max(1, -(-text_bytes // BYTES_PER_TOKEN) + given) + settings.hidden_tokens


def output_tokens(settings: Settings, limit: int | None) -> tuple[int, bool]:
    """How many tokens the answer has, and whether it was the request's limit that ended it."""
    if limit is None or limit > settings.output_tokens:
        return settings.output_tokens, False
    return limit, True


def utf8_length(text: str) -> int:
    """Bytes of the text as UTF-8; half a surrogate pair, which JSON can spell, counts three."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def words(count: int, start: int = 0) -> Iterator[str]:
    """`count` tokens, each but the first with a space before it; `start` picks the first word."""
    for index in range(count):
        word = _WORDS[(start + index) % len(_WORDS)]
        yield f" {word}" if index else word
