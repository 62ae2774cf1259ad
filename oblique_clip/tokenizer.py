"""Captions to token ids: open_clip's vocabulary for the standard sizes, a small one for the tiny size.

A tokenizer is called as open_clip's are: `tokenizer(texts)` gives int64 ids (B, context_length), padded with 0 behind
an end token that is the largest id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib import resources
from typing import Protocol

import torch
from torch import Tensor

PAD_ID = 0
TINY_VOCAB_SIZE = 4096
END = "<end>"


class Tokenizer(Protocol):
    """What the library asks of a tokenizer; open_clip's `SimpleTokenizer` fits."""

    context_length: int
    vocab_size: int

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor: ...


class TinyTokenizer:
    """Word pieces of the shipped captions and CLDR keywords (byte pair encoding), in lower case.

    Examples:
        >>> from oblique_clip.tokenizer import TinyTokenizer
        >>> tokenizer = TinyTokenizer(context_length=6)
        >>> ids = tokenizer(["Red Apple"])
        >>> ids.tolist()  # two words, the end, padding
        [[381, 1245, 4095, 0, 0, 0]]
        >>> tokenizer.decode(ids[0].tolist())
        'red apple'
    """

    def __init__(self, context_length: int = 32) -> None:
        from tokenizers import Tokenizer as Backend

        text = resources.files("oblique_clip.data").joinpath("assets/tokenizer.json").read_text(encoding="utf-8")
        self._backend = Backend.from_str(text)
        # A caption that spells "<end>" or "<pad>" means the letters, not the token.
        self._backend.encode_special_tokens = True
        self.context_length = context_length
        self.vocab_size = int(self._backend.get_vocab_size())
        self._end = self.vocab_size - 1

    def __call__(self, texts: str | list[str], context_length: int | None = None) -> Tensor:
        length = context_length or self.context_length
        batch = [texts] if isinstance(texts, str) else list(texts)
        ids = torch.full((len(batch), length), PAD_ID, dtype=torch.long)
        for row, encoding in enumerate(self._backend.encode_batch(batch)):
            tokens = [*encoding.ids[: length - 1], self._end]
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without padding and end."""
        return str(self._backend.decode([i for i in ids if i not in (PAD_ID, self._end)]))


def build_tiny_vocabulary(texts: Iterable[str]) -> str:
    """Train the vocabulary of `TinyTokenizer` and return it as JSON; the end token gets the largest id.

    The shipped one was made of every caption and each of its keywords, picture by picture. `tokenizers` breaks ties
    between equally frequent pairs in an order that changes from run to run: two builds differ in a few pieces and in
    their ids, so a model keeps the vocabulary that it was trained with.

    Examples:
        >>> from tokenizers import Tokenizer
        >>> from oblique_clip.tokenizer import build_tiny_vocabulary
        >>> vocabulary = build_tiny_vocabulary(["red apple", "green apple", "red house"])
        >>> Tokenizer.from_str(vocabulary).encode("RED apple").tokens
        ['red', 'apple']
    """
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
        ]
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    special = ["<pad>", "<unk>"]
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCAB_SIZE - 1, special_tokens=special, continuing_subword_prefix="##", show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([END])
    return str(backend.to_str(pretty=False))


@lru_cache
def get_tokenizer(name: str, context_length: int) -> Tokenizer:
    """The tokenizer of an `Architecture`: `tiny` or `clip`.

    Examples:
        >>> from oblique_clip.tokenizer import get_tokenizer
        >>> get_tokenizer("tiny", 32)(["red apple", "dog"]).shape
        torch.Size([2, 32])
        >>> get_tokenizer("clip", 77).vocab_size
        49408
    """
    if name == "tiny":
        return TinyTokenizer(context_length)
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer(context_length=context_length)


def cut_to_longest(ids: Tensor) -> Tensor:
    """Drop the columns that are padding in every row of ids (B, L): the features stay the same, the work shrinks.

    Called where a batch is put together, on the CPU: reading a length from a GPU tensor would wait for the GPU.

    Examples:
        >>> import torch
        >>> from oblique_clip.tokenizer import cut_to_longest
        >>> cut_to_longest(torch.tensor([[5, 9, 4095, 0, 0, 0], [7, 4095, 0, 0, 0, 0]])).tolist()
        [[5, 9, 4095], [7, 4095, 0]]
    """
    used = (ids != PAD_ID).any(0).nonzero()
    return ids[:, : int(used[-1]) + 1 if len(used) else 1]
