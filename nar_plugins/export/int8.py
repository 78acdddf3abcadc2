"""Products of a graph in 8 bits: ONNX Runtime's ``MatMulNBits``, whose outputs do not depend on the batch.

ONNX Runtime's ``quantize_dynamic`` scales the input of a product by the largest value of the whole batch, so that what a
sentence is translated to depends on the others. ``MatMulNBits`` with accuracy level 4 scales every row by itself, in
blocks of ``BLOCK`` inputs, within one operator. It reads the weight as PyTorch stores it, (outputs, inputs); so the tied
output projection, which the exporter leaves behind a ``Transpose`` of the embedding, needs no other form.
"""

import os
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np

BLOCK = 32  # inputs with a scale of their own
DOMAIN = "com.microsoft"  # of ONNX Runtime's own operators
ZERO = 128  # of an unsigned byte


class Quantised(NamedTuple):
    """What was done to a graph.

    Attributes:
        layers: the weights that products read in 8 bits, by name, with their shape (outputs, inputs).
        kept: the matrices that stay in float32, likewise: embeddings that are looked up.
        before, after: the bytes of all weights.
    """

    layers: Dict[str, Tuple[int, int]]
    kept: Dict[str, Tuple[int, ...]]
    before: int
    after: int


class Product(NamedTuple):
    """A product with a constant matrix.

    Attributes:
        node: of the graph. weight: the constant's name. matrix: (outputs, inputs). bias: the name of a Gemm's, or None.
    """

    node: object
    weight: str
    matrix: np.ndarray
    bias: Optional[str]


def quantise(path: Path) -> Quantised:
    """Quantise all products with a constant matrix in a file, in place.

    Raises:
        ValueError: a product of two matrices has another form than these, and would stay in float32 in silence.
    """
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    before = weight_bytes(graph)
    constants = {constant.name: constant for constant in graph.initializer}
    products, made = {}, {}
    for node in graph.node:
        product = product_of(node, graph, constants)
        if product is not None:
            products[id(node)] = product
    nodes = []
    for node in graph.node:
        product = products.get(id(node))
        if product is None:
            nodes.append(node)
            continue
        if product.weight not in made:
            made[product.weight] = packed(product.matrix)
            for name, array in zip(names(product.weight), made[product.weight]):
                graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        nodes.append(quantised_node(product))
    replace(graph.node, nodes)
    drop_unread(graph)
    if not any(each.domain == DOMAIN for each in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    temporary = path.with_suffix(".tmp")
    onnx.save(model, str(temporary))
    os.replace(temporary, path)
    layers = {product.weight: product.matrix.shape for product in products.values()}
    kept = {each.name: tuple(each.dims) for each in graph.initializer if len(each.dims) == 2 and each.data_type == 1}
    return Quantised(layers, kept, before, weight_bytes(graph))


def product_of(node, graph, constants: Dict) -> Optional[Product]:
    """The product that a node is, or None."""
    from onnx import numpy_helper

    if node.op_type not in ("MatMul", "Gemm"):
        return None
    weight, bias, turned = node.input[1], None, False
    if node.op_type == "Gemm":
        attributes = {each.name: each for each in node.attribute}
        if any(attributes[name].f != 1 for name in ("alpha", "beta") if name in attributes):
            return None
        if "transA" in attributes and attributes["transA"].i:
            return None
        turned = "transB" in attributes and bool(attributes["transB"].i)
        bias = node.input[2] if len(node.input) > 2 else None
    if weight not in constants:
        maker = next((each for each in graph.node if weight in each.output), None)
        if maker is None or maker.op_type != "Transpose" or maker.input[0] not in constants:
            return None
        weight, turned = maker.input[0], not turned
    matrix = numpy_helper.to_array(constants[weight])
    if matrix.ndim != 2:
        return None
    return Product(node, weight, matrix if turned else np.ascontiguousarray(matrix.T), bias)


def packed(matrix: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """A matrix (outputs, inputs) in 8 bits: values (outputs, blocks, BLOCK) uint8 and scales (outputs * blocks,)."""
    outputs, inputs = matrix.shape
    blocks = -(-inputs // BLOCK)
    full = np.zeros((outputs, blocks * BLOCK), dtype=np.float32)
    full[:, :inputs] = matrix
    full = full.reshape(outputs, blocks, BLOCK)
    scales = np.abs(full).max(-1) / 127
    values = np.rint(full / np.where(scales == 0, 1, scales)[..., None]) + ZERO
    return values.astype(np.uint8), scales.astype(np.float32).reshape(-1)


def names(weight: str) -> List[str]:
    """The names of a weight's values and scales."""
    return [f"{weight}.int8", f"{weight}.scales"]


def quantised_node(product: Product):
    """The node in place of a product's."""
    from onnx import helper

    outputs, inputs = product.matrix.shape
    bias = ["", "", product.bias] if product.bias else []  # without zero points and order of the inputs
    return helper.make_node(
        "MatMulNBits",
        [product.node.input[0], *names(product.weight), *bias],
        list(product.node.output),
        name=f"{product.node.name}.int8",
        domain=DOMAIN,
        K=inputs,
        N=outputs,
        bits=8,
        block_size=BLOCK,
        accuracy_level=4,
    )


def drop_unread(graph) -> None:
    """Remove transpositions and constants that no node reads any more."""
    outputs = {each.name for each in graph.output}
    read = outputs | {name for node in graph.node for name in node.input}
    replace(graph.node, [node for node in graph.node if node.op_type != "Transpose" or read & set(node.output)])
    read = outputs | {name for node in graph.node for name in node.input}
    replace(graph.initializer, [each for each in graph.initializer if each.name in read])


def replace(field, values: List) -> None:
    """Set a repeated field of a protocol buffer."""
    values = list(values)
    del field[:]
    field.extend(values)


def weight_bytes(graph) -> int:
    """The bytes of a graph's constants."""
    from onnx import numpy_helper

    return sum(numpy_helper.to_array(each).nbytes for each in graph.initializer)
