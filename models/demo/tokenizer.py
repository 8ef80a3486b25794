"""Build the tokenizer: whole words of the generated text, and single bytes for everything else.

A byte-level BPE without merges. A piece of text that is in the vocabulary becomes one token; any other piece falls to
its bytes. Names, cities and other slot values are kept out of the vocabulary, so that copying, reversing and
upper-casing work on characters and a held-out value looks like a trained one. Digits are single tokens; runs of JSON
punctuation are pieces.

    python -m models.demo.tokenizer
"""

import argparse
import json
from collections import Counter

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from models.demo.corpus import samples
from models.demo.text import FOLDER, PAD, TURN_END, TURN_START, render
from models.demo.words import open_words

NUM_PER_TASK = 3_000
MIN_COUNT = 20
VOCAB_SIZE = 2048
TOOL_TAGS = ("<tool_call>", "</tool_call>")
# Digits alone; runs of JSON punctuation that hold quotes; ", " before a digit; words with their leading space; others.
PIECES = r"""\p{N}|[{}\[\]:, ]*(?:"[{}\[\]:, ]*)+|, (?=\p{N})| ?\p{L}+| ?[^\s\p{L}\p{N}"]+|\n+|\s"""


def byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def frequent_pieces(num_per_task: int, limit: int) -> list[str]:
    """The commonest pieces of the generated text that are longer than a byte, without slot values."""
    split = byte_level()
    counts: Counter[str] = Counter()
    for one in samples(num_per_task):
        counts.update(piece for piece, _ in split.pre_tokenize_str(render(one)))
    closed = open_words()
    kept = [
        (piece, count)
        for piece, count in counts.items()
        if len(piece) > 1 and count >= MIN_COUNT and piece.lstrip("Ġ").casefold() not in closed
    ]
    return [piece for piece, _ in sorted(kept, key=lambda item: (-item[1], item[0]))[:limit]]


def build(num_per_task: int = NUM_PER_TASK) -> Tokenizer:
    special = [PAD, TURN_START, TURN_END]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = VOCAB_SIZE - len(alphabet) - len(special) - len(TOOL_TAGS)
    pieces = alphabet + frequent_pieces(num_per_task, room)
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = byte_level()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    # Not special, so that a client that skips special tokens still sees the call (vLLM's hermes parser reads the text).
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in TOOL_TAGS])
    return tokenizer


def known_words(tokenizer: Tokenizer) -> list[str]:
    """Lower-case words of three letters or more that are one token."""
    words = (piece.removeprefix("Ġ") for piece in tokenizer.get_vocab())
    return sorted({word for word in words if len(word) >= 3 and word.isascii() and word.isalpha() and word.islower()})


def save(tokenizer: Tokenizer) -> None:
    tokenizer.save(str(FOLDER / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    (FOLDER / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "").parse_args()
    tokenizer = build()
    save(tokenizer)
    print(f"{tokenizer.get_vocab_size()} tokens, {len(known_words(tokenizer))} of them words")


if __name__ == "__main__":
    main()
