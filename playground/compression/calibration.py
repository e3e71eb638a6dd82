"""Calibration data: token sequences from text files, or from text that the model itself makes up."""

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from playground.compression.perplexity import read_text
from playground.config import EngineConfig
from playground.engine.engine import Engine
from playground.errors import ConfigError
from playground.models.config import DecoderConfig
from playground.models.tokenizer import load_tokenizer
from playground.sampling_params import SamplingParams

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibration:
    """What to calibrate on."""

    files: tuple[Path, ...] = ()
    """Plain text, UTF-8, one after another. None at all: the model writes the text itself, with fixed seeds."""
    sequences: int = 128
    length: int = 512
    """Tokens of a sequence; no more than the model's positions are used."""

    def __post_init__(self) -> None:
        if self.sequences < 1 or self.length < 2:
            raise ConfigError(
                f"{self.sequences} calibration sequences of {self.length} tokens are too few: give at least 1 of 2."
            )


def calibration_tokens(
    folder: Path, config: DecoderConfig, calibration: Calibration, device: torch.device | str = "cpu"
) -> Tensor:
    """int64 [sequences, length]. Raises `ConfigError` for text that is too short, missing or not UTF-8."""
    length = min(calibration.length, config.max_position_embeddings)
    if not calibration.files:
        logger.info("no calibration text given: the model writes %d x %d tokens", calibration.sequences, length)
        return _own_text(folder, config, calibration.sequences, length, device)
    text = "".join(read_text(file) for file in calibration.files)
    ids = load_tokenizer(folder)(text, add_special_tokens=False, verbose=False)["input_ids"]
    needed = calibration.sequences * length
    if len(ids) < needed:
        names = ", ".join(str(file) for file in calibration.files)
        raise ConfigError(
            f"the calibration text {names} holds {len(ids)} tokens, but {calibration.sequences} sequences of {length} "
            f"need {needed}: give a longer text or ask for fewer or shorter sequences."
        )
    # Spread evenly, so that every part of the text has its say.
    starts = torch.linspace(0, len(ids) - length, calibration.sequences, dtype=torch.float64).long()
    return torch.tensor(ids)[starts[:, None] + torch.arange(length)]


def kept_tokens(
    file: Path, folder: Path, config: DecoderConfig, calibration: Calibration, device: torch.device | str
) -> Tensor:
    """`calibration_tokens`, from `file` if it is there, else put there: a resumed run must see the same text."""
    if file.is_file():
        return torch.tensor(json.loads(file.read_text()))
    ids = calibration_tokens(folder, config, calibration, device)
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        unfinished.write_text(json.dumps(ids.tolist()))
        os.replace(unfinished, file)
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be written ({error.strerror}): make room, or check its permissions."
        ) from None
    return ids


def describe(calibration: Calibration) -> dict[str, Any]:
    """What tells calibration data apart: the text's hash, or that the model writes it."""
    digest = hashlib.sha256("".join(map(read_text, calibration.files)).encode()).hexdigest()
    text = digest if calibration.files else "the model's own"
    return {"text": text, "sequences": calibration.sequences, "length": calibration.length}


def _own_text(folder: Path, config: DecoderConfig, sequences: int, length: int, device: torch.device | str) -> Tensor:
    """Sampled at temperature 1 behind the token that begins or ends documents, as in training; seeds 0, 1, 2, ...

    Text of the model's own calibrates it about as well as its training data do (arXiv 2410.17170), and is always there.
    """
    start = _document_start(folder, config)
    params = [SamplingParams(max_tokens=length - 1, temperature=1.0, seed=n, ignore_eos=True) for n in range(sequences)]
    engine_config = EngineConfig(model=str(folder), device=str(device), max_model_len=length, prefix_caching=False)
    with Engine(engine_config) as engine:
        outs = engine.generate([[start]] * sequences, params)
    failed = next((out.error for out in outs if out.error), None)
    if failed is not None:
        raise ConfigError(f"the model cannot write its calibration text ({failed}): give a text file.")
    return torch.tensor([[start, *out.token_ids] for out in outs])


def _document_start(folder: Path, config: DecoderConfig) -> int:
    if config.bos_token_id is not None:
        return config.bos_token_id
    if config.eos_token_ids:
        return config.eos_token_ids[-1]
    raise ConfigError(f"{folder} names no token that begins or ends a text: give a calibration text file.")
