"""One linear layer in ONNX Runtime: float32, int8 with a scale for the batch, and int8 with a scale for every row.

    python benchmarks/bench_onnx_int8.py [--rows 1,12,400]

For every size it prints the microseconds of a call on one thread (the best of seven), the mean relative error, and
whether the first row's output is the same in a batch of one. The second form is that of ONNX Runtime's
``quantize_dynamic``, the third that of ``nar_plugins/export/int8.py``.
"""

import argparse
import time
from types import SimpleNamespace

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from nar_plugins.export import int8
from nar_plugins.measure.machine import cpu_name, version_of

SIZES = ((256, 256), (512, 512), (2048, 512), (512, 2048), (10000, 512))  # outputs, inputs


def session(nodes, constants, inputs: int):
    """A session of a graph from x (rows, inputs) to y."""
    import onnxruntime

    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", None])],
        constants,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(int8.DOMAIN, 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def layers(weight: np.ndarray) -> dict:
    """The three forms of a layer, by name."""
    product = helper.make_node("MatMul", ["x", "weight"], ["y"], name="layer")
    matrix = numpy_helper.from_array(np.ascontiguousarray(weight.T), "weight")
    whole = SimpleNamespace(node=[product], initializer=[matrix])
    (part,) = int8.products_of(whole)
    int8.add_numbers(whole)
    int8.store(part, whole)
    (rows, scale), made = int8.quantised_rows("x")
    per_batch = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "q.scale", "q.zero"]),
        helper.make_node(
            "MatMulIntegerToFloat",
            ["q", "weight.int8", "q.scale", "weight.scales", "q.zero"],
            ["y"],
            domain=int8.DOMAIN,
        ),
    ]
    per_row = [*made, *int8.integer_product(part, rows, scale)]
    return {
        "float32": session([product], [matrix], weight.shape[1]),
        "a batch": session(per_batch, whole.initializer, weight.shape[1]),
        "a row": session(per_row, whole.initializer, weight.shape[1]),
    }


def microseconds(layer, x: np.ndarray) -> float:
    """Of a call, the best of seven."""
    best = float("inf")
    for _ in range(7):
        calls, start = 0, time.perf_counter()
        while calls < 3 or time.perf_counter() - start < 0.01:
            layer.run(None, {"x": x})
            calls += 1
        best = min(best, (time.perf_counter() - start) / calls)
    return best * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,12,30,400", help="rows of the input, separated by commas")
    args = parser.parse_args()
    print(f"{cpu_name()}, one thread, onnxruntime {version_of('onnxruntime')}\n")
    print("| outputs x inputs | rows | scale | us | of float32 | error | alone the same |")
    print("|---|---|---|---|---|---|---|")
    generator = np.random.default_rng(1)
    for outputs, inputs in SIZES:
        weight = generator.standard_normal((outputs, inputs)).astype(np.float32)
        forms = layers(weight)
        for rows in map(int, args.rows.split(",")):
            x = generator.standard_normal((rows, inputs)).astype(np.float32)
            right, times = x @ weight.T, {}
            for name, layer in forms.items():
                (y,), (alone,) = layer.run(None, {"x": x}), layer.run(None, {"x": x[:1]})
                times[name] = microseconds(layer, x)
                error = np.abs(y - right).mean() / np.abs(right).mean()
                share = times[name] / times["float32"]
                same = "yes" if np.array_equal(y[:1], alone) else "no"
                entries = (
                    f"{outputs} x {inputs}",
                    rows,
                    name,
                    f"{times[name]:.0f}",
                    f"{share:.2f}",
                    f"{error:.4f}",
                    same,
                )
                print(f"| {' | '.join(map(str, entries))} |")


if __name__ == "__main__":
    main()
