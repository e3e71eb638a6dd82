"""The tokenizer that a GGUF file describes in its metadata, with its chat template; built by transformers."""

from pathlib import Path
from typing import TYPE_CHECKING

from playground.errors import ModelLoadError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_gguf_tokenizer(path: Path) -> "PreTrainedTokenizerFast":
    """Raises `ModelLoadError` where the file has none, or one of a kind that transformers does not know."""
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(str(path.parent), gguf_file=path.name, local_files_only=True)
    except Exception as error:  # the library and the parser below it raise whatever they meet
        text = " ".join(str(error).split())[:160]
        raise ModelLoadError(
            f"{path}: no tokenizer can be built from its metadata ({type(error).__name__}: {text}): "
            "use a file that was converted with its tokenizer."
        ) from None
