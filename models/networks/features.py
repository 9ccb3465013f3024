"""Which features of a transformer the trained heads read, by name, and how its tokens see each other.

last      hidden states of the last layer
layer:N   hidden states of layer N; 0 is the embedding layer
words     word embeddings at unit length: what a token is, where the last layer says what it means in this text
mini      the token vectors of the encoder `mini` (128 dimensions, unit length), so that heads learn from stored vectors
"""

from __future__ import annotations

from typing import Literal

LAST = "last"
WORDS = "words"
MINI = "mini"  # also the name of the backbone that comes with Chamfer
Attention = Literal["own", "bidirectional"]
"""own: the model's attention mask as it was trained; bidirectional: every token of a decoder sees all others."""
