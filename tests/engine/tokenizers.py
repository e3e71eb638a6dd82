"""One tokenizer of each kind, made here from a few lines of text: nothing is downloaded."""

import json
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "the cat sat on the mat and the cat was happy",
    "straße größer naïve café déjà vu — “quotes”",
    "日本語 のテキスト 中文 한국어 🙂 👩‍👩‍👧 🇩🇪 👍🏽",
    "ab aab abb aba bab abab aabb bbaa",
]
SPECIAL = ["<s>", "</s>", "<|end|>"]


@cache
def byte_level() -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        LINES * 3,
        trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False),
    )
    tokenizer.add_tokens(["<think>", "two words"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@cache
def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2 and Mistral: marks for spaces, byte fallback, one space stripped from the start of a text."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trained.train_from_iterator(
        [LINES[0], LINES[1]] * 3, trainers.BpeTrainer(vocab_size=90, special_tokens=SPECIAL, show_progress=False)
    )
    learned = [t for t, _ in sorted(trained.get_vocab().items(), key=lambda item: item[1]) if t not in SPECIAL]
    tokens = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *learned, "▁▁", "▁▁▁"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, "▁"]))}
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    model = models.BPE(vocabulary, [*merges, ("▁", "▁")], byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", *SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def metaspace() -> PreTrainedTokenizerFast:
    """As T5 and the early SentencePiece conversions."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", *SPECIAL]
    tokenizer.train_from_iterator(
        LINES * 3, trainers.BpeTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def wordpiece() -> PreTrainedTokenizerFast:
    """A decoder that joins words by rules of its own, for which the window is there."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    special = ["<unk>", *SPECIAL]
    tokenizer.train_from_iterator(
        LINES * 3, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def decode(tokenizer: PreTrainedTokenizerFast, token_ids: list[int]) -> str:
    """What transformers makes of all the tokens at once."""
    text: str = tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def byte_ids(tokenizer: PreTrainedTokenizerFast, data: bytes) -> list[int]:
    """The tokens of single bytes, whatever merges there are."""
    if tokenizer is byte_level():
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        names = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
        return [tokenizer.convert_tokens_to_ids(names[byte]) for byte in data]
    return [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in data]
