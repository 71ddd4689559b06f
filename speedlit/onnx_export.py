"""The embedder as one ONNX graph: token ids and attention mask in, finished vectors out.

torch's own exporter writes it; optimum asks for an older transformers. Pooling and normalisation are part of the graph, so whoever runs it needs the
tokenizer beside it and onnxruntime, and can pool in no other way. Batch and length are free.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speedlit.errors import UsageError

if TYPE_CHECKING:
    import torch

    from speedlit.models.folder import Loaded

GRAPH = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONE_FILE = 1_500_000_000  # bytes of weights: a file of protobuf ends at 2 GB, so larger weights lie beside it as model.onnx.data


def check_onnx(dtype: str) -> None:
    """Refuse what cannot be written, before the model is loaded.

    Raises:
        UsageError: a package is missing, or another dtype than float32 is asked for.
    """
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise UsageError(f"the onnx format needs {', '.join(missing)}: pip install 'speedlit[onnx]'")
    if dtype != "float32":
        raise UsageError(f"the onnx format holds float32 weights, which onnxruntime computes on every device: leave out --dtype {dtype}")


def write_graph(loaded: Loaded, target: Path) -> None:
    """Write ``model.onnx`` (weights of more than 1.5 GB as ``model.onnx.data``) and the network's ``config.json``."""
    import torch
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ids = torch.arange(3 * 7).view(3, 7) % loaded.model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that an axis has the name of another input's, and what torch says of its own parts
        program: Any = torch.onnx.export(
            _graph(loaded), (), kwargs=dict(zip(INPUTS, (ids, mask), strict=True)), dynamic_shapes=dict.fromkeys(INPUTS, axes),
            input_names=INPUTS, output_names=(OUTPUT,), dynamo=True, verbose=False,
        )  # fmt: skip
        ClearMetadataAndDocStringPass()(program.model)  # each node says from which file and line of this machine it comes
        size = sum(weight.numel() * weight.element_size() for weight in loaded.model.parameters())
        program.save(target / GRAPH, external_data=size > ONE_FILE)
    loaded.model.config.save_pretrained(target)


def _graph(loaded: Loaded) -> torch.nn.Module:
    """What is drawn: the model's own way from ids to vectors."""
    import torch

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = loaded.model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return loaded.embed(input_ids, attention_mask)

    return Graph().eval()
