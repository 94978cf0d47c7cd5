"""Where OpenVINO's own files keep the 8-bit weights of products: written by an exporter, read by a check."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Int8

if TYPE_CHECKING:
    import openvino


class Product(NamedTuple):
    """MatMul(x, Multiply(Convert(codes), scale)) of a graph."""

    op: "openvino.Node"
    # a row for each output channel
    weights: Int8[np.ndarray, "rows columns"]
    # whether the graph holds them so, or the other way round
    by_rows: bool
    widened: "openvino.Node"
    scaled: "openvino.Node"


def eight_bit_products(model: "openvino.Model") -> Iterator[Product]:
    """Every product with signed 8-bit weights, in the graph's order."""
    for op in model.get_ordered_ops():
        scaled = op.input_value(1).get_node() if op.get_type_name() == "MatMul" else None
        if scaled is None or scaled.get_type_name() != "Multiply":
            continue
        widened = scaled.input_value(0).get_node()
        codes = widened.input_value(0).get_node() if widened.get_type_name() == "Convert" else None
        if codes is None or codes.get_element_type().to_dtype() != np.int8:
            continue
        by_rows = op.get_attributes()["transpose_b"]
        yield Product(op, codes.data if by_rows else codes.data.T, by_rows, widened, scaled)
