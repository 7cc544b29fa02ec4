"""ONNX, for ONNX Runtime on servers, on phones and in browsers.

The graph scores all choices of a question in one pass after their shared prompt, as firstkd does
in training: `input_ids`, `position_ids` and `segments` [L] are a packed row (firstkd/data/
packing.py), `rows` [N] the positions to predict from, and `logits` [N, V] the output. With
positions 0, 1, 2 … and segments of −1 it is an ordinary causal language model.
"""

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any, ClassVar, Literal

from firstkd.errors import ConfigError
from firstkd.exports.base import Export, Exported

INPUTS = ("input_ids", "position_ids", "segments", "rows")
BLOCK = 32
"""Number of weights in a down projection's column that share a scale."""
ACTIVATIONS_TOO = 4
"""ONNX Runtime's `accuracy_level` for eight-bit activations with one scale per block."""
BYTES = {"fp32": 4, "int8": 1}
"""Bytes per weight."""
LARGEST_FILE = 2**31
"""Size limit of one protobuf, in bytes."""
FACTS = "firstkd"
"""The key in the file's metadata for the calibration as JSON."""


class OnnxExport(Export):
    kind: Literal["onnx"]
    file_name: ClassVar[str] = "model.onnx"
    runtime: ClassVar[str] = "onnxruntime"

    weights: Literal["fp32", "int8"]
    """int8: matrices are quantised per column, activations dynamically; for down projections, both
    are quantised in blocks of 32, since their inputs have outliers."""

    def check(self, config: Any, tokenizer: Any) -> None:
        from firstkd.models.masks import ATTENTION, layer_kinds

        if unknown := layer_kinds(config) - ATTENTION:
            raise ConfigError(
                f"onnx scores choices after a shared prompt, but {config.model_type} has stateful "
                f"layers ({', '.join(sorted(unknown))}); export another model"
            )

    def write(self, exported: Exported, file: Path) -> None:
        """Raise ConfigError if choices cannot share a prompt, or the file would be too large."""
        import onnx

        size = BYTES[self.weights] * exported.model.num_parameters()
        if size >= LARGEST_FILE:
            raise ConfigError(
                f"one ONNX file holds {LARGEST_FILE / 1e9:.1f} GB at most, but the weights take "
                f"{size / 1e9:.1f} GB as {self.weights}; export it as int8, or as gguf"
            )
        with tempfile.TemporaryDirectory(prefix=".onnx.", dir=file.parent) as scratch:
            whole = Path(scratch) / "whole.onnx"
            _program(exported.model).save(whole, external_data=False)
            if self.weights == "int8":
                whole = _in_eight_bits(whole)
            model = onnx.load(whole)
        _forget_where_it_was_made(model)
        onnx.helper.set_model_props(model, {FACTS: exported.facts})
        file.write_bytes(model.SerializeToString(deterministic=True))


def _in_eight_bits(whole: Path) -> Path:
    """Write the quantised model beside the original, and return its path."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    logging.getLogger().setLevel(max(logging.WARNING, logging.getLogger().level))
    quantised = whole.with_name("int8.onnx")
    quantize_dynamic(
        whole,
        quantised,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_down_projections(onnx.load(whole).graph),
    )
    by_block = DefaultWeightOnlyQuantConfig(
        block_size=BLOCK, is_symmetric=True, accuracy_level=ACTIVATIONS_TOO, bits=8
    )
    others = MatMulNBitsQuantizer(onnx.load(quantised), algo_config=by_block)
    others.process()
    onnx.save(others.model.model, quantised)
    return quantised


def _down_projections(graph: Any) -> list[str]:
    """Return the names of the matrix products whose input is a gated product.

    A few of these activations are hundreds of times larger than the rest, so one scale for all of
    them would leave the rest almost no precision.
    """
    fixed = {tensor.name for tensor in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    return [
        node.name
        for node in products
        if node.input[1] in fixed
        and (source := made_by.get(node.input[0])) is not None
        and source.op_type == "Mul"
        and not fixed.intersection(source.input)  # a norm's weight is fixed
    ]


def _program(model: Any) -> Any:
    """Trace the model on a row of one prompt and two responses; lengths stay dynamic."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own deprecations
        tokens, rows = torch.export.Dim("tokens", min=2), torch.export.Dim("rows")
        example = [[1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 2, 3], [-1, -1, 0, 0, 1, 1], [1, 2, 4]]
        return torch.onnx.export(
            _graph(model),
            tuple(torch.tensor(values) for values in example),
            dynamo=True,
            dynamic_shapes=({0: tokens}, {0: tokens}, {0: tokens}, {0: rows}),
            input_names=INPUTS,
            output_names=["logits"],
            verbose=False,
        )


def _graph(model: Any) -> Any:
    import torch
    from torch import Tensor

    from firstkd.models.masks import attention_masks
    from firstkd.models.scoring import ResponseScorer

    class Graph(torch.nn.Module):
        def __init__(self, scorer: ResponseScorer) -> None:
            super().__init__()
            self.scorer = scorer

        def forward(
            self, input_ids: Tensor, position_ids: Tensor, segments: Tensor, rows: Tensor
        ) -> Tensor:
            backbone, places = self.scorer.backbone, position_ids[None]
            masks = attention_masks(backbone.config, segments[None], places, backbone.dtype)
            states = backbone(
                input_ids=input_ids[None],
                attention_mask=masks,
                position_ids=places,
                use_cache=False,
            ).last_hidden_state
            return self.scorer.head.logits(states[0][rows])

    scorer = ResponseScorer(model, exact=True)
    if not scorer.can_pack:
        raise ConfigError(
            f"onnx scores choices after a shared prompt, which {model.config.model_type} cannot "
            "do; export another model"
        )
    return Graph(scorer).eval()


def _forget_where_it_was_made(model: Any) -> None:
    """Drop the source paths that the exporter records, which are of no use to a runtime."""
    del model.metadata_props[:]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    del model.graph.metadata_props[:]
    for function in model.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
