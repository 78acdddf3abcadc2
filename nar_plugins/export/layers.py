"""Every product in 8 bits against the one in float32, on the same inputs: what ``check.py`` cannot see.

The scores of whole outputs barely show that the scales of one layer are wrong. Here each layer of the quantised graph
gets the inputs that it has in the float32 one, and each of its outputs must be as near to the float32 one as rounding
explains. The graph is read as it was written; the integers are added exactly (``onnx.reference``), on any processor.
"""

from typing import Dict, List, Sequence

import numpy as np

from nar_plugins.export import runtime
from nar_plugins.export.int8 import DOMAIN, Product, drop_unread, products_by_heads, replace

STEPS = 127  # of a scale, on either side of zero
# How many times the error that rounding explains an output's may be, as root mean squares over the rows. On models of
# random weights (tests/unit/test_export.py) it was 0.9 to 1.0 times as large on average, 2.1 times at most; on a cmlm
# trained on Multi30k 0.5 to 1.0 and 1.6. One scale that was wrong by a factor of 1.1 made it 6 and more in 14 layers of
# random weights, by 1.3 it made 25 and more.
LIMIT = 5.0
ROWS = 512  # of the inputs of a layer, at most: a large vocabulary's outputs for all of them would take gigabytes


class Recorder(runtime.OnnxTranslator):
    """Keeps what the graphs of a folder read.

    Attributes:
        inputs: of every graph, those of each of its calls.
    """

    def __init__(self, folder, threads=None):
        super().__init__(folder, threads)
        self.inputs: Dict[str, List[Dict[str, np.ndarray]]] = {name: [] for name in self.sessions}

    def run(self, name: str, inputs: Dict[str, np.ndarray]) -> List[np.ndarray]:
        self.inputs[name].append({key: array.copy() for key, array in inputs.items()})  # loops write into theirs
        return super().run(name, inputs)


def check_layers(plain, quantised, calls: Sequence[Dict[str, np.ndarray]]) -> float:
    """Compare the layers of a graph in 8 bits with those of the graph that it was made of.

    Args:
        plain, quantised: ONNX models. calls: inputs of the graph, at least one.

    Returns:
        the largest error of an output, in those that rounding explains.

    Raises:
        ValueError: a layer's error is larger than ``LIMIT``, or it is in no graph; names the layer.
    """
    products, _ = products_by_heads(plain.graph)
    names = [product.node.input[0] for product in products]
    found = float_tensors(plain, [*names, *(product.node.output[0] for product in products)], calls)
    states, largest = {name: found[name] for name in names}, 0.0
    for product, output in zip(products, integer_outputs(quantised, products, states)):
        errors = relative_errors(states[product.node.input[0]], product.matrix, output - found[product.node.output[0]])
        worst = int(errors.argmax())  # the first NaN, where there is one
        if not errors[worst] <= LIMIT:
            raise ValueError(
                f"output {worst} of {product.layer} is {errors[worst]:.1f} times as far from float32 as rounding "
                f"explains, more than {LIMIT:.0f}: its weights or scales in the graph are wrong; export it without "
                "--int8"
            )
        largest = max(largest, float(errors[worst]))
    return largest


def float_tensors(model, names: Sequence[str], calls: Sequence[Dict[str, np.ndarray]]) -> Dict[str, np.ndarray]:
    """What a graph computes: each tensor (..., width) of these names as rows (N, width).

    Of each call at most an equal share of ``ROWS`` is taken, from all parts of the tensor: the same ones for tensors of
    as many rows.
    """
    import onnx
    import onnxruntime

    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    given = {each.name for each in model.graph.input}
    inner = sorted({*names} - given)
    replace(shown.graph.output, map(floats, inner))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: Dict[str, List[np.ndarray]] = {name: [] for name in names}
    share = -(-ROWS // len(calls))
    for call in calls:
        arrays = {**call, **dict(zip(inner, session.run(None, call)))}
        for name, parts in found.items():
            rows = arrays[name].reshape(-1, arrays[name].shape[-1])
            parts.append(rows[:: -(-len(rows) // share) or 1])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def integer_outputs(quantised, products: Sequence[Product], states: Dict[str, np.ndarray]) -> List[np.ndarray]:
    """The outputs (N, outputs) of the layers of the quantised graph, bias included, for rows of states.

    Raises:
        ValueError: a layer is not in the graph.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    model = onnx.ModelProto()
    model.CopyFrom(quantised)
    graph, names = model.graph, [product.node.output[0] for product in products]
    read = {*names} & {*states}  # the output of one layer is the input of another, which gets that of float32
    for node in graph.node:
        renamed = [compared(output) if output in read else output for output in node.output]
        replace(node.output, renamed)
    names = [compared(name) if name in read else name for name in names]
    makers = {output: node for node in graph.node for output in node.output}
    needed, left = set(), list(names)
    while left:
        name = left.pop()
        if name in makers and name not in states and name not in needed:
            needed.add(name)
            left += makers[name].input
    for product, name in zip(products, names):
        if name not in needed:
            raise ValueError(f"{product.layer} is not in the quantised graph: export it without --int8")
    replace(graph.node, [node for node in graph.node if needed & {*node.output}])
    replace(graph.input, map(floats, states))
    replace(graph.output, map(floats, names))
    drop_unread(graph)
    return ReferenceEvaluator(model, new_ops=[exact_product()]).run(None, states)


def compared(name: str) -> str:
    """The name of a layer's output where its own is an input of the graph."""
    return f"{name}.compared"


def floats(name: str):
    """A tensor of float32 of any shape, as an input or an output of a graph."""
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, None)


def exact_product():
    """ONNX Runtime's ``MatMulIntegerToFloat`` for ``onnx.reference``, with sums that are exact."""
    from onnx.reference.op_run import OpRun

    class MatMulIntegerToFloat(OpRun):
        op_domain = DOMAIN

        def _run(self, rows, weight, row_scale, scales, zero):
            sums = (rows.astype(np.float64) - float(zero)) @ weight.astype(np.float64)  # whole numbers below 2 ** 53
            return (sums.astype(np.float32) * (row_scale * scales),)

    return MatMulIntegerToFloat


def relative_errors(states: np.ndarray, matrix: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """The error of every output of a layer, in those that rounding explains: (outputs,), root mean squares of the rows.

    A number that is rounded to multiples of a scale is wrong by scale / sqrt(12), if its errors are even; those of the
    inputs and of the weights add up as if they were independent.

    Args:
        states: (N, inputs). matrix: (inputs, outputs). errors: (N, outputs).
    """
    states, matrix = states.astype(np.float64), matrix.astype(np.float64)
    of_rows, of_weights = np.abs(states).max(1) / STEPS, np.abs(matrix).max(0) / STEPS
    energy, norms = (states**2).sum(1).mean(), (matrix**2).sum(0)
    explained = (energy * of_weights**2 + (of_rows**2).mean() * norms) / 12
    in_float32 = 1e-12 * energy * norms + 1e-30  # what float32 itself rounds, and what is below its numbers
    return np.sqrt((errors.astype(np.float64) ** 2).mean(0) / (explained + in_float32))
