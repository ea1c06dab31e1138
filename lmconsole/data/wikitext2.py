"""WikiText-2 in GPT-1's tokens, as tokenized by the course that published the reference results (docs/protocol.md)."""

TOKENS = {"train": 2_356_376, "validation": 245_046, "test": 279_023}
"""Number of tokens of each split."""
VOCABULARY = 40_479
"""GPT-1's tokens, and padding."""
SHA256 = "4e404bff5e07ff171f342b5a711122627af7574a122b99b279982591418cdadc"
"""Fingerprint of the vocabulary size and the ids (``data.cache.fingerprint``)."""
