"""Ways of a product with few rows on a CPU: which one should a decoder's layers take, and which one its drafts?

    python benchmarks/bench_products.py [--rows 1,4,8,16,28,64] [--threads 1] [--seconds 0.2]

For every size of a layer microseconds a product, the least: PyTorch's own (MKL), MKL with the weight transposed,
oneDNN with the weight reordered once, and where the CPU has them float16 weights by FBGEMM
(``modules/fast/half_weights.py``) and int8 with its quantisation: what drafts take from half a million numbers on
(``modules/fast/rough.py``). As many layers take turns as exceed a core's cache, and small ones come between the rounds,
as in a decoder. What ``modules/fast/block_layers.py`` chooses in float32 is marked with a star.
"""

import argparse
import time
from typing import Callable, List

import torch
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.measure.machine import cpu_name
from nar_plugins.modules.fast.forms import int8_lacks
from nar_plugins.modules.fast.half_weights import fbgemm_has_float16, half_weight_product
from nar_plugins.modules.fast.rough import int8_product_of_few_rows
from nar_plugins.modules.linear import onednn_is_faster, onednn_threshold

SIZES = ((128, 128), (128, 512), (128, 6000), (512, 512), (512, 1536), (512, 2048), (2048, 512), (512, 10000))
CACHE = 40_000_000  # numbers of all layers of a size; at most 24 layers
NAMES = ["PyTorch", "transposed", "oneDNN"]
if fbgemm_has_float16():
    NAMES.append("float16")
if int8_lacks(torch.device("cpu")) is None:
    NAMES.append("int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1,4,8,16,28,64")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.2, help="of a measurement")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{cpu_name()}, {args.threads} threads, torch {torch.__version__}\n")
    print(f"| in x out, rows | {' | '.join(NAMES)} |")
    print("|---" * (len(NAMES) + 1) + "|")
    with torch.inference_mode():
        for inputs, outputs in SIZES:
            weights = [torch.randn(outputs, inputs) for _ in range(min(24, max(1, CACHE // (inputs * outputs))))]
            forms = list(zip(*(functions(weight, torch.randn(outputs)) for weight in weights)))
            for rows in map(int, args.rows.split(",")):
                x = torch.randn(rows, inputs)
                times = [microseconds(form, x, args.seconds) for form in forms]
                many = onednn_is_faster() and x.numel() * outputs >= onednn_threshold(weights[0])
                marks = [" *" * (name == ("oneDNN" if many else "transposed")) for name in NAMES]
                cells = " | ".join(f"{taken:.1f}{mark}" for taken, mark in zip(times, marks))
                print(f"| {inputs} x {outputs}, {rows} | {cells} |", flush=True)


def functions(weight: Tensor, bias: Tensor) -> List[Callable[[Tensor], Tensor]]:
    """The product in the ways of ``NAMES``."""
    transposed, packed = weight.t().contiguous(), torch.ops.mkldnn._reorder_linear_weight(weight)
    onednn = torch.ops.mkldnn._linear_pointwise
    half = [half_weight_product(weight, bias)] if "float16" in NAMES else []
    int8 = [int8_product_of_few_rows(weight)] if "int8" in NAMES else []
    return [
        lambda x: F.linear(x, weight, bias),
        lambda x: torch.addmm(bias, x, transposed),
        lambda x: onednn(x, packed, bias, "none", [], ""),
        *half,
        *int8,
    ]


def microseconds(layers: List[Callable], x: Tensor, seconds: float) -> float:
    """Of a layer, the least of five runs that take so long together."""
    times, end = [], time.perf_counter() + seconds
    between, states = [torch.randn(128, 512) for _ in range(20)], torch.randn(4, 128)
    while len(times) < 5 or time.perf_counter() < end:
        for weight in between:
            torch.mm(states, weight)
        start = time.perf_counter()
        for layer in layers:
            layer(x)
        times.append(time.perf_counter() - start)
    return min(times[1:]) / len(layers) * 1e6


if __name__ == "__main__":
    main()
