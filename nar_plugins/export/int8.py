"""The products of a graph in 8 bits, with scales that do not depend on the batch.

ONNX Runtime's ``quantize_dynamic`` scales the input of a product by the largest value of the whole batch, so that what
a sentence is translated to depends on the others of its batch. And it leaves a product in float32, in silence, where
the weight is not a constant itself: the exporter leaves a large tied output projection behind a ``Transpose`` of the
embedding. Here every row of an input has a scale of its own, as in this package's PyTorch int8
(``modules/fast/int8.py``), written into the graph around ONNX Runtime's integer product. What that costs:
``benchmarks/bench_onnx_int8.py``. Every constant matrix is stored transposed, in 8 bits.

The heads of lengths and fertilities stay in float32, as in PyTorch: they decide much and cost little.
"""

import os
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np

DOMAIN = "com.microsoft"  # of ONNX Runtime's own operators
HEADS = ("length_head", "fertility_head")
ZERO = 128  # of an unsigned byte: ONNX Runtime's fast kernels take unsigned inputs and signed weights
SCOPES = "pkg.torch.onnx.name_scopes"  # of a node's metadata: the modules that it is of
PROBE = "int8_probe.onnx"
PROBE_SIZE = 64
PROBED = PROBE_SIZE * 127 * 127  # the right output of the probe


class Quantised(NamedTuple):
    """What was done to a graph.

    Attributes:
        layers: the layers in 8 bits, by name, with the shape (outputs, inputs) of their weights.
        kept: those that stay in float32, likewise.
        before, after: the bytes of all weights, the embeddings included, which are float32.
    """

    layers: Dict[str, Tuple[int, int]]
    kept: Dict[str, Tuple[int, int]]
    before: int
    after: int


class Product(NamedTuple):
    """A product with a constant matrix.

    Attributes:
        node: of the graph. layer: the name of the module. weight: the constant's name. matrix: (inputs, outputs).
        bias: the name of a Gemm's, or None.
    """

    node: object
    layer: str
    weight: str
    matrix: np.ndarray
    bias: Optional[str]


def quantise(path: Path) -> Quantised:
    """Quantise the products with a constant matrix in a file, in place."""
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    before = weight_bytes(graph)
    layers, kept = products_by_heads(graph)
    chosen = {product.node.name: product for product in layers}
    add_numbers(graph)
    nodes, rows = [], {}
    for node in graph.node:
        product = chosen.get(node.name)
        if product is None:
            nodes.append(node)
            continue
        if node.input[0] not in rows:  # the layers that read the same states share their quantised form
            rows[node.input[0]], made = quantised_rows(node.input[0])
            nodes += made
        store(product, graph)
        nodes += integer_product(product, *rows[node.input[0]])
    replace(graph.node, nodes)
    drop_unread(graph)
    if not any(each.domain == DOMAIN for each in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    save(model, path)
    shapes = [{each.layer: each.matrix.shape[::-1] for each in part} for part in (layers, kept)]
    return Quantised(*shapes, before, weight_bytes(graph))


def products_by_heads(graph) -> Tuple[List[Product], List[Product]]:
    """The products with a constant matrix that are quantised, and the heads, which stay in float32."""
    products = [product for product in products_of(graph) if product is not None]
    heads = [product.layer.rsplit(".", 1)[-1] in HEADS for product in products]
    return tuple([product for product, head in zip(products, heads) if head is kept] for kept in (False, True))


def products_of(graph) -> List[Optional[Product]]:
    """The products with a constant matrix; None for every other node."""
    from onnx import numpy_helper

    known = {constant.name: constant for constant in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}

    def product(node) -> Optional[Product]:
        if node.op_type not in ("MatMul", "Gemm"):
            return None
        weight, bias, turned = node.input[1], None, False
        if node.op_type == "Gemm":
            turned = any(each.name == "transB" and each.i for each in node.attribute)
            bias = node.input[2] if len(node.input) > 2 else None
        maker = makers.get(weight)
        if maker is not None and maker.op_type == "Transpose":
            weight, turned = maker.input[0], not turned
        if weight not in known or len(known[weight].dims) != 2:
            return None
        matrix = numpy_helper.to_array(known[weight])
        layer = next((each.value for each in node.metadata_props if each.key == "layer"), weight)
        return Product(node, layer, weight, np.ascontiguousarray(matrix.T) if turned else matrix, bias)

    return [product(node) for node in graph.node]


def add_numbers(graph) -> None:
    """Put the numbers that ``quantised_rows`` and ``integer_product`` read into a graph."""
    from onnx import numpy_helper

    numbers = {
        "int8.last": np.array([-1], dtype=np.int64),
        "int8.most": np.array(127, dtype=np.float32),
        "int8.share": np.array(1 / 127, dtype=np.float32),
        "int8.least": np.array(1e-30, dtype=np.float32),  # a row of zeros has no scale
        "int8.one": np.array(1, dtype=np.float32),
        "int8.zero": np.array(ZERO, dtype=np.uint8),
    }
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in numbers.items())


def quantised_rows(states: str) -> Tuple[Tuple[str, str], List]:
    """Scale every row of some states (..., inputs) by its largest value.

    Returns:
        the names of the rows in 8 bits and of their scales (..., 1); the nodes that make them.
    """
    from onnx import helper

    def name(part: str) -> str:
        return f"{states}.{part}"

    nodes = [
        helper.make_node("Abs", [states], [name("sizes")]),
        helper.make_node("ReduceMax", [name("sizes"), "int8.last"], [name("largest")], keepdims=1),
        helper.make_node("Max", [name("largest"), "int8.least"], [name("positive")]),
        helper.make_node("Div", ["int8.most", name("positive")], [name("inverse")]),
        helper.make_node("Mul", [states, name("inverse")], [name("scaled")]),
        helper.make_node("QuantizeLinear", [name("scaled"), "int8.one", "int8.zero"], [name("int8")]),
        helper.make_node("Mul", [name("positive"), "int8.share"], [name("scale")]),
    ]
    return (name("int8"), name("scale")), nodes


def store(product: Product, graph) -> None:
    """Put a product's matrix into the graph: int8 (inputs, outputs), and a scale for every output."""
    from onnx import numpy_helper

    names = {constant.name for constant in graph.initializer}
    if f"{product.weight}.int8" in names:
        return
    scales = np.abs(product.matrix).max(0) / 127
    values = np.rint(product.matrix / np.where(scales == 0, 1, scales)).astype(np.int8)
    graph.initializer.append(numpy_helper.from_array(values, f"{product.weight}.int8"))
    graph.initializer.append(numpy_helper.from_array(scales.astype(np.float32), f"{product.weight}.scales"))


def integer_product(product: Product, rows: str, scale: str) -> List:
    """The nodes in place of a product's."""
    from onnx import helper

    output, weight = product.node.output[0], product.weight
    inputs = [rows, f"{weight}.int8", "int8.one", f"{weight}.scales", "int8.zero"]
    nodes = [
        helper.make_node("MatMulIntegerToFloat", inputs, [f"{output}.unscaled"], domain=DOMAIN),
        helper.make_node("Mul", [f"{output}.unscaled", scale], [f"{output}.product" if product.bias else output]),
    ]
    if product.bias:
        nodes.append(helper.make_node("Add", [f"{output}.product", product.bias], [output]))
    return nodes


def drop_unread(graph) -> None:
    """Remove transpositions and constants that no node reads any more."""

    def read() -> set:
        return {each.name for each in graph.output} | {name for node in graph.node for name in node.input}

    names = read()
    replace(graph.node, [node for node in graph.node if node.op_type != "Transpose" or names & set(node.output)])
    names = read()
    replace(graph.initializer, [each for each in graph.initializer if each.name in names])


def replace(field, values: List) -> None:
    """Set a repeated field of a protocol buffer."""
    values = list(values)
    del field[:]
    field.extend(values)


def save(model, path: Path) -> None:
    """Write a file in place of the one that it was made from."""
    import onnx

    temporary = path.with_suffix(".tmp")
    onnx.save(model, str(temporary))
    os.replace(temporary, path)


def weight_bytes(graph) -> int:
    """The bytes of a graph's constants."""
    from onnx import numpy_helper

    return sum(numpy_helper.to_array(each).nbytes for each in graph.initializer)


def write_probe(folder: Path) -> Dict:
    """Write a graph that outputs ``PROBED`` where integer products are exact, for ``runtime.py``.

    On x86 without VNNI, ONNX Runtime adds pairs of products in 16 bits, which overflow (its ``reduce_range`` is for
    that).

    Returns:
        the entry of config.json.
    """
    from onnx import TensorProto, helper, numpy_helper

    rows = np.full((4, PROBE_SIZE), ZERO + 127, dtype=np.uint8)
    weight = np.full((PROBE_SIZE, PROBE_SIZE), 127, dtype=np.int8)
    node = helper.make_node("MatMulInteger", ["rows", "weight", "zero"], ["products"])
    graph = helper.make_graph(
        [node],
        "probe",
        [helper.make_tensor_value_info("rows", TensorProto.UINT8, list(rows.shape))],
        [helper.make_tensor_value_info("products", TensorProto.INT32, [len(rows), PROBE_SIZE])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array(ZERO, dtype=np.uint8), "zero")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / PROBE).write_bytes(model.SerializeToString())
    return {"file": PROBE, "rows": list(rows.shape), "value": ZERO + 127, "product": PROBED}
