"""Token ids of a prompt for models that embed them themselves: by a local tokenizer.json, or the prompt's bytes."""

import dataclasses
from functools import cached_property
from pathlib import Path

import numpy as np

from world_model.encoders.tokenizer import padded

SPARE = 1024  # rows of an embedding that may be no token's, as tables are rounded up


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """Cuts prompts into at most `text_length` tokens. file: a tokenizer.json; None: bytes."""

    text_length: int
    vocab_size: int
    file: str | None = None

    def __post_init__(self):
        if self.file is None and self.vocab_size < 256:
            raise ValueError(f"encoders.tokens = 'bytes' wants model.vocab_size = 256 or more, found {self.vocab_size}")

    def tokenize(self, prompt: str) -> tuple[np.ndarray, int]:
        """(int32 [text_length], number of tokens), zeros behind them. Raises ValueError where they are too many, or the
        tokenizer is none or has another vocabulary."""
        found = self._reader.encode(prompt, add_special_tokens=False).ids if self.file is not None else \
            list(prompt.encode())
        return padded(prompt, found, self.text_length)

    @cached_property
    def _reader(self):
        if Path(self.file).suffix != ".json" or not Path(self.file).is_file():
            raise ValueError(f"encoders.tokenizer = {self.file!r}: give a local tokenizer.json")
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ValueError("encoders.tokenizer: tokenizers is missing; it is in the extra `tokenizers`") from error
        try:
            reader = Tokenizer.from_file(self.file)
        except Exception as error:  # the library raises a kind of its own
            raise ValueError(f"{self.file}: not a tokenizer: {error}") from error
        if not self.vocab_size - SPARE <= (size := reader.get_vocab_size()) <= self.vocab_size:
            raise ValueError(f"{self.file}: a vocabulary of {size} tokens, the model's embedding has "
                             f"model.vocab_size = {self.vocab_size} rows: it is another model's tokenizer")
        reader.no_padding()
        reader.no_truncation()
        return reader
