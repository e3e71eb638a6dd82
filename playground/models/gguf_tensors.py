"""The tensors of a GGUF file under their names in a Hugging Face checkpoint, matrices in blocks left as they are."""

from collections.abc import Callable

import torch
from torch import Tensor

from playground.models.checkpoint import check_tensors
from playground.models.config import DecoderConfig
from playground.models.families import ROLES, linear_parts, tensor_shapes
from playground.models.gguf_config import ROPE_FACTORS, architecture_of, names_in_file
from playground.models.gguf_file import PLAIN_TYPES, GGUFFile
from playground.quantization.blocks import BlockWeight
from playground.quantization.gguf_codes import CODED_TYPES, to_codes
from playground.quantization.gguf_types import BLOCK_TYPES
from playground.quantization.weight import QuantizedWeight


def gguf_tensors(config: DecoderConfig, file: GGUFFile, dtype: torch.dtype, device: torch.device) -> "GGUFTensors":
    """The tensors of an open file for a model in `dtype` on `device`: a `QuantizedSource` where some are in blocks.

    Refuses missing, extra and misshapen tensors (`ModelLoadError`).
    """
    if all(entry.type_id in PLAIN_TYPES for entry in file.entries.values()):
        return GGUFTensors(config, file)
    return GGUFBlocks(config, file, dtype, device)


class GGUFTensors:
    """A `TensorSource` over an open file."""

    def __init__(self, config: DecoderConfig, file: GGUFFile) -> None:
        """See `gguf_tensors`."""
        architecture = architecture_of(file)
        shapes = tensor_shapes(config)
        names = names_in_file(config, architecture.names)
        self._file, self._in_file = file, {name: names[name] for name in shapes}
        turned = _linear_names(config) if config.family.transposed else set()
        expected = {names[name]: shape[::-1] if name in turned else shape for name, shape in shapes.items()}
        found = {name: entry.shape for name, entry in file.entries.items()}
        check_tensors(file.path, found, expected, also=[ROPE_FACTORS], owner=config.architecture, config="metadata")
        self._turned = turned
        self._heads = _permuted_heads(config) if architecture.permuted else {}

    def read(self, name: str, use: Callable[[Tensor], None]) -> None:
        """Call `use` with a tensor, decoded to float32 where it is in blocks. It must be copied there."""
        rows = self._row_order(name)

        def laid_out(tensor: Tensor) -> None:
            tensor = tensor if rows is None else tensor[rows]
            use(tensor.t() if name in self._turned else tensor)

        stored = self._in_file[name]
        kind = BLOCK_TYPES.get(self._file.entries[stored].type_id)
        if kind is None:
            self._file.read_plain(stored, laid_out)
        else:
            laid_out(BlockWeight(kind, self._file.read_blocks(stored)).dequantize())

    def _row_order(self, name: str) -> Tensor | None:
        """The rows of the file's tensor in the order of a Hugging Face checkpoint; None where they lie so.

        llama.cpp rotates neighbours, so its converter moves row i of a head's second half next to row i of the first.
        """
        heads = self._heads.get(name.rpartition(".")[0])
        if heads is None:
            return None
        return (
            torch.arange(self._file.entries[self._in_file[name]].shape[0]).view(heads, -1, 2).transpose(1, 2).flatten()
        )


class GGUFBlocks(GGUFTensors):
    """A `QuantizedSource` over an open file with matrices in blocks."""

    def __init__(self, config: DecoderConfig, file: GGUFFile, dtype: torch.dtype, device: torch.device) -> None:
        """See `gguf_tensors`."""
        super().__init__(config, file)
        self._dtype, self._device = dtype, device

    def quantized(self, name: str) -> BlockWeight | QuantizedWeight | None:
        """The matrix "`name`.weight" as the file stores it; None where it is not in blocks.

        As codes where there is a product for those (see `_has_product`), which rounds their scales and offsets to the
        model's dtype: an error of up to 2^-9 in bfloat16, as that of any weight of a model in it. In float32 and in
        every other format the blocks stay as they are, and weights are decoded exactly.
        """
        stored = self._in_file[f"{name}.weight"]
        entry = self._file.entries[stored]
        if entry.type_id in PLAIN_TYPES:
            return None
        blocks, rows = self._file.read_blocks(stored), self._row_order(f"{name}.weight")
        weight = BlockWeight(BLOCK_TYPES[entry.type_id], blocks if rows is None else blocks[rows])
        return to_codes(weight) if _has_product(weight, self._dtype, self._device) else weight


def _has_product(weight: BlockWeight, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether codes are the better form: much faster, and at most some percent larger.

    On a CPU in bfloat16, torch's int4 product takes 5 bits a weight where the file has 4.5, and a third of the time of
    decoding blocks. As two such products, Q8_0 would take 10 bits where it has 8.5. A GPU decodes both in our kernels.
    """
    if weight.kind.name not in CODED_TYPES or dtype.itemsize > 2:
        return False
    return device.type != "cpu" or weight.kind.name != "Q8_0"


def _linear_names(config: DecoderConfig) -> set[str]:
    parts = [name for role in ROLES for name, _ in linear_parts(config, role)]
    return {f"{name.format(layer)}.weight" for name in parts for layer in range(config.num_layers)}


def _permuted_heads(config: DecoderConfig) -> dict[str, int]:
    """Names of the q and k matrices, with their numbers of heads."""
    query, key, _ = config.family.names.qkv
    return {
        name.format(layer): heads
        for name, heads in ((query, config.num_heads), (key, config.num_kv_heads))
        for layer in range(config.num_layers)
    }
