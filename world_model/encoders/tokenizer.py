"""Makes token ids of a prompt as the published models read it, by a local tokenizer file (extra: tokenizers).

A prompt is cleaned first (Wan-Video/Wan2.1 at 9737cba, wan/modules/tokenizers.py): ftfy mends broken encodings, HTML
entities are resolved twice, and white space is joined.
"""

import functools
import html
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np


def clean(prompt: str) -> str:
    """The text that is cut into tokens."""
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return re.sub(r"\s+", " ", text).strip()


def tokenize(path: str, prompt: str, length: int) -> tuple[np.ndarray, int]:
    """Returns (int32 [length], number of tokens): the prompt's, the end token, then zeros. Raises ValueError where they
    are more than `length`, or the file is not there or no tokenizer."""
    return padded(prompt, _encoder(path)(clean(prompt)), length)


def padded(prompt: str, found: list[int], length: int) -> tuple[np.ndarray, int]:
    """(int32 [length], number of tokens) of the prompt's tokens. Raises ValueError where they are more."""
    if len(found) > length:
        raise ValueError(f"prompt {prompt[:40]!r}... has {len(found)} tokens, model.text_length = {length}: shorten "
                         "the prompt or raise the limit")
    ids = np.zeros(length, np.int32)
    ids[:len(found)] = found
    return ids, len(found)


@functools.cache
def _encoder(path: str) -> Callable[[str], list[int]]:
    """A function from text to ids with the end token. Nothing is ever fetched."""
    file = Path(path)
    if file.suffix not in READERS or not file.is_file():
        raise ValueError(f"encoders.tokenizer = {path!r}: give a local file, tokenizer.json or a SentencePiece .model")
    try:
        return READERS[file.suffix](str(file))
    except ImportError as error:
        raise ValueError(f"encoders.tokenizer: {error.name} is missing; it is in the extra `tokenizers`") from error
    except Exception as error:  # either library has its own kinds
        raise ValueError(f"{path}: not a tokenizer: {error}") from error


def _json(path: str) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer

    read = Tokenizer.from_file(path)
    read.no_padding()
    read.no_truncation()
    return lambda text: read.encode(text).ids  # its own post-processor adds the end token


def _sentencepiece(path: str) -> Callable[[str], list[int]]:
    import sentencepiece

    read = sentencepiece.SentencePieceProcessor(model_file=path)
    return lambda text: read.encode(text, add_eos=True)


READERS = {".json": _json, ".model": _sentencepiece}
