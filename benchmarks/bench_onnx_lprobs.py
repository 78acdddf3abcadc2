"""The log-probabilities of the most probable tokens in ONNX Runtime: by ReduceLogSumExp and by LogSoftmax.

    python benchmarks/bench_onnx_lprobs.py [--rows 13,65,160] [--words 1500,6000,32000]

For every size it prints the microseconds of a call on one thread (the best of seven), the largest error of a
log-probability, and the mean one, with its sign. Right is float64. The logits are those of a model trained with label
smoothing: one token of nine tenths, the others share the rest nearly evenly, which adds many equal small numbers to a
large one. The second form is that of ``nar_plugins/export/graphs.py``.
"""

import argparse
import time

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from nar_plugins.measure.machine import cpu_name, version_of


def session(form: str):
    """A session of a graph from logits x (rows, words) to the log-probabilities y of the greatest (rows,)."""
    import onnxruntime

    nodes = {
        "ReduceLogSumExp": [
            helper.make_node("ReduceMax", ["x", "last"], ["best"], keepdims=0),
            helper.make_node("ArgMax", ["x"], ["tokens"], axis=-1, keepdims=0),
            helper.make_node("ReduceLogSumExp", ["x", "last"], ["sum"], keepdims=0),
            helper.make_node("Sub", ["best", "sum"], ["y"]),
        ],
        "LogSoftmax": [
            helper.make_node("ArgMax", ["x"], ["tokens"], axis=-1, keepdims=1),
            helper.make_node("LogSoftmax", ["x"], ["lprobs"], axis=-1),
            helper.make_node("GatherElements", ["lprobs", "tokens"], ["column"], axis=-1),
            helper.make_node("Squeeze", ["column", "last"], ["y"]),
        ],
    }
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows"]),
        helper.make_tensor_value_info("tokens", TensorProto.INT64, None),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "words"])]
    last = numpy_helper.from_array(np.array([-1]), "last")
    graph = helper.make_graph(nodes[form], "lprobs", inputs, outputs, [last])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def microseconds(one, x: np.ndarray) -> float:
    """Of a call, the best of seven."""
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        one.run(None, {"x": x})
        best = min(best, time.perf_counter() - start)
    return best * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="13,65,160", help="positions of a call, separated by commas")
    parser.add_argument("--words", default="1500,6000,32000", help="symbols, separated by commas")
    args = parser.parse_args()
    print(f"{cpu_name()}, one thread, onnxruntime {version_of('onnxruntime')}\n")
    print("| rows x words | form | us | largest error | mean error |")
    print("|---|---|---|---|---|")
    generator = np.random.default_rng(1)
    sessions = {form: session(form) for form in ("ReduceLogSumExp", "LogSoftmax")}
    for words in map(int, args.words.split(",")):
        for rows in map(int, args.rows.split(",")):
            x = 0.3 * generator.standard_normal((rows, words))
            x[np.arange(rows), generator.integers(words, size=rows)] += np.log(9 * words)
            x = x.astype(np.float32)
            exact = x.astype(np.float64)
            right = exact.max(1) - np.log(np.exp(exact).sum(1))
            for form, one in sessions.items():
                error = one.run(["y"], {"x": x})[0] - right
                times = microseconds(one, x)
                largest, mean = np.abs(error).max(), error.mean()
                print(f"| {rows} x {words} | {form} | {times:.0f} | {largest:.1e} | {mean:+.1e} |", flush=True)


if __name__ == "__main__":
    main()
