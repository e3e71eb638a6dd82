"""Loads a model's tokenizer and checks that it belongs to the model. Encodes and decodes nothing itself."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from playground.errors import ModelLoadError
from playground.models.config import DecoderConfig, read_json
from playground.models.gguf_tokenizer import load_gguf_tokenizer
from playground.models.hub import is_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of a model folder or GGUF file. Raises `ModelLoadError`."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(path)
    if is_gguf(folder):
        return load_gguf_tokenizer(folder)
    if not (folder / "tokenizer.json").is_file():
        raise ModelLoadError(f"{folder} has no tokenizer.json: add the tokenizer's files to the model's folder.")
    read_json(folder / "tokenizer.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library and the parser below it raise whatever they meet
        text = " ".join(str(error).split())[:160]
        raise ModelLoadError(f"{folder}: the tokenizer cannot be read ({text}): restore its files.") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelLoadError(f"{folder}: {type(tokenizer).__name__} is not a fast tokenizer: add a tokenizer.json.")
    return tokenizer


def check_vocabulary(config: DecoderConfig, tokenizer: "PreTrainedTokenizerFast") -> None:
    """Refuse a tokenizer that can produce ids which the model has no row for; more rows than ids are padding."""
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= config.vocab_size:
        raise ModelLoadError(
            f"the tokenizer has {highest + 1} tokens but the model only {config.vocab_size}: "
            "they do not belong together; use the tokenizer that the model was trained with."
        )
    if highest + 1 < config.vocab_size:
        logger.info("the model has %d rows for %d tokens; the rest is padding", config.vocab_size, highest + 1)
