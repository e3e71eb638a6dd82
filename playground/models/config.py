"""What a decoder is made of, read from a Hugging Face `config.json`.

`DecoderConfig` is the only description of an architecture that the rest of the project sees. It reads no weights, and
what it cannot express (an unknown architecture, an unknown rope scaling) it refuses with one sentence.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from playground.errors import ModelLoadError
from playground.models.families import FAMILIES, Family, tensor_shapes
from playground.quantization.formats import QuantizedFormat, read_format

ROPE_TYPES = ("default", "linear", "llama3")
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: base frequency and how it is stretched beyond the length trained on."""

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192

    def inverse_frequencies(self, head_dim: int) -> torch.Tensor:
        """float64 [head_dim / 2]: radians per position of each rotated pair."""
        inv = self.theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        if self.kind == "linear":
            return inv / self.factor
        if self.kind == "llama3":
            wavelength = 2 * math.pi / inv
            length = self.original_max_position_embeddings
            # 0 where the wave is longer than the trained context allows (fully stretched), 1 where it is short.
            blend = (length / wavelength - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            blend = blend.clamp(0.0, 1.0)
            return inv * (blend + (1 - blend) / self.factor)
        return inv


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and switches of one decoder-only model."""

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    activation: str
    gated_mlp: bool
    positions: Literal["rope", "learned"]
    rope: RopeConfig
    layer_windows: tuple[int | None, ...]
    """Per layer: how many tokens a token sees, itself included; None is all of them."""
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_embeddings: bool
    max_position_embeddings: int
    torch_dtype: str
    """Name of the dtype the checkpoint says it is stored in."""
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    quantization: QuantizedFormat | None = None
    """How the checkpoint's quantized matrices are stored, where it has any."""

    @classmethod
    def from_folder(cls, path: str | Path) -> "DecoderConfig":
        """Read `config.json` (and the end tokens of `generation_config.json`). Raises `ModelLoadError`."""
        folder = Path(path)
        raw = read_json(folder / "config.json")
        generation = folder / "generation_config.json"
        extra_eos = read_json(generation).get("eos_token_id") if generation.is_file() else None
        config = cls.from_dict(raw, str(folder))
        ids = dict.fromkeys([*config.eos_token_ids, *_token_ids(extra_eos)])
        return replace(config, eos_token_ids=tuple(ids))

    @classmethod
    def from_dict(cls, raw: dict[str, Any], source: str = "config") -> "DecoderConfig":
        """Build from the parsed `config.json`; `source` is named in error messages."""
        return _Reader(raw, source).read()

    @property
    def family(self) -> Family:
        return FAMILIES[self.architecture]

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.torch_dtype]

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def sliding_window(self) -> int | None:
        """The widest window if every layer has one, else None: what lies before it is read by no layer."""
        windows = [w for w in self.layer_windows if w is not None]
        return max(windows) if windows and len(windows) == len(self.layer_windows) else None

    def with_sliding_window(self, window: int | None) -> "DecoderConfig":
        """The same model with this window in every layer."""
        return replace(self, layer_windows=(window,) * self.num_layers)

    @property
    def num_parameters(self) -> int:
        """Number of weights, a tied output head counted once."""
        return sum(math.prod(shape) for shape in tensor_shapes(self).values())

    def kv_bytes_per_token(self, dtype: torch.dtype) -> int:
        """Bytes of KV that one token takes over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * dtype.itemsize


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `ModelLoadError` where it is missing, broken or not an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(
            f"{path.parent} has no {path.name}: give a folder in Hugging Face format (config.json and *.safetensors)."
        ) from None
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path} cannot be read as JSON ({error}): restore or download the file again.") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} holds a {type(value).__name__} where a JSON object is needed: restore the file.")
    return value


def _token_ids(value: Any) -> list[int]:
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int)]


class _Reader:
    """Reads one raw config: looks keys up under the family's names and refuses what is out of range."""

    def __init__(self, raw: dict[str, Any], source: str) -> None:
        self.raw, self.source = raw, source
        architectures = raw.get("architectures")
        name = architectures[0] if isinstance(architectures, list) and architectures else None
        if name is None:  # some configs carry only the model type
            name = next((f.architecture for f in FAMILIES.values() if f.model_type == raw.get("model_type")), None)
        if name not in FAMILIES:
            given = name or raw.get("model_type") or "no architecture"
            raise ModelLoadError(f"{source} is {given}, which is not supported: use one of {', '.join(FAMILIES)}.")
        self.family = FAMILIES[name]

    def fail(self, what: str) -> ModelLoadError:
        return ModelLoadError(f"config.json of {self.source}: {what}")

    def get(self, key: str, default: Any = None) -> Any:
        value = self.raw.get(self.family.config_keys.get(key, key))
        return default if value is None else value

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            name = self.family.config_keys.get(key, key)
            raise self.fail(f"{name}={value!r} is not allowed: give a whole number of at least 1.")
        return value

    def number(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self.fail(f"{key}={value!r} is not allowed: give a number above 0.")
        return float(value)

    def read(self) -> DecoderConfig:
        family = self.family
        self._refuse_what_is_not_there()
        hidden, heads = self.whole("hidden_size"), self.whole("num_attention_heads")
        layers = self.whole("num_hidden_layers")
        kv_heads = self.whole("num_key_value_heads", heads)
        if heads % kv_heads:
            raise self.fail(f"{heads} attention heads cannot share {kv_heads} KV heads: use a divisor.")
        if not self.get("head_dim") and hidden % heads:
            raise self.fail(f"hidden_size={hidden} does not divide into {heads} heads: give head_dim.")
        activation = self.get("hidden_act", "silu")
        if activation not in ACTIVATIONS:
            raise self.fail(f"hidden_act={activation!r} is not supported: use one of {', '.join(ACTIVATIONS)}.")
        attention_bias = bool(self.get("attention_bias", False))
        return DecoderConfig(
            architecture=family.architecture,
            vocab_size=self.whole("vocab_size"),
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=self.whole("head_dim", hidden // heads),
            intermediate_size=self.whole("intermediate_size", 4 * hidden),
            norm=family.norm,
            norm_eps=self.number("norm eps", self.get("rms_norm_eps", 1e-6 if family.norm == "rms" else 1e-5)),
            activation=activation,
            gated_mlp=family.gated_mlp,
            positions=family.positions,
            rope=self._rope(),
            layer_windows=self._windows(layers),
            qkv_bias=family.qkv_bias or attention_bias,
            out_bias=family.out_bias or (attention_bias and not family.qkv_bias),
            mlp_bias=family.mlp_bias or bool(self.get("mlp_bias", False)),
            qk_norm=family.qk_norm,
            tie_embeddings=bool(self.get("tie_word_embeddings", family.tied_by_default)),
            max_position_embeddings=self.whole("max_position_embeddings", 2048),
            torch_dtype=self._dtype(),
            bos_token_id=next(iter(_token_ids(self.get("bos_token_id"))), None),
            eos_token_ids=tuple(_token_ids(self.get("eos_token_id"))),
            quantization=self._quantization(),
        )

    def _refuse_what_is_not_there(self) -> None:
        for key, only in self.family.only_values.items():
            if key in self.raw and self.raw[key] != only:
                raise self.fail(f"{key}={self.raw[key]!r} is not supported: only {only!r} is.")

    def _quantization(self) -> QuantizedFormat | None:
        """llm-compressor once wrote `compression_config`."""
        raw = self.raw.get("quantization_config") or self.raw.get("compression_config")
        return read_format(raw, self.source) if raw else None

    def _dtype(self) -> str:
        name = str(self.raw.get("dtype") or self.raw.get("torch_dtype") or "float32").removeprefix("torch.")
        if name not in DTYPES:
            raise self.fail(f"dtype={name!r} is not supported: use one of {', '.join(DTYPES)}.")
        return name

    def _rope(self) -> RopeConfig:
        """transformers 5 writes `rope_parameters`; older files write `rope_theta` and `rope_scaling`."""
        if self.family.positions != "rope":
            return RopeConfig()
        values = self.raw.get("rope_parameters") or self.raw.get("rope_scaling") or {}
        if not isinstance(values, dict):
            raise self.fail("rope_parameters must be an object.")
        kind = values.get("rope_type") or values.get("type") or "default"
        if kind not in ROPE_TYPES:
            raise self.fail(f"rope type {kind!r} is not supported: use one of {', '.join(ROPE_TYPES)}.")
        partial = values.get("partial_rotary_factor") or self.raw.get("partial_rotary_factor") or 1.0
        if partial != 1.0:
            raise self.fail(f"partial_rotary_factor={partial!r} is not supported: only 1.0 is.")
        theta = values.get("rope_theta") or self.raw.get("rope_theta") or 10_000.0
        low = self.number("low_freq_factor", values.get("low_freq_factor", 1.0))
        high = self.number("high_freq_factor", values.get("high_freq_factor", 4.0))
        if kind == "llama3" and high <= low:
            raise self.fail(f"high_freq_factor={high} must be above low_freq_factor={low}.")
        original = values.get("original_max_position_embeddings", 8192)
        return RopeConfig(
            theta=self.number("rope_theta", theta),
            kind=kind,
            factor=self.number("rope factor", values.get("factor", 1.0)),
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position_embeddings=int(self.number("original_max_position_embeddings", original)),
        )

    def _windows(self, layers: int) -> tuple[int | None, ...]:
        """Which layers slide: `layer_types` where written, else `use_sliding_window` and `max_window_layers`."""
        window = self.get("sliding_window")
        if self.family.window == "never" or window is None:
            return (None,) * layers
        window = self.whole("sliding_window")
        kinds = self.raw.get("layer_types")
        if self.family.window == "flagged" and not self.raw.get("use_sliding_window", False):
            return (None,) * layers
        if isinstance(kinds, list) and len(kinds) == layers:
            return tuple(window if kind == "sliding_attention" else None for kind in kinds)
        if self.family.window == "flagged":
            first = self.raw.get("max_window_layers", layers)
            return tuple(window if layer >= first else None for layer in range(layers))
        return (window,) * layers
