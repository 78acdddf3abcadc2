"""One pass of ``nat`` against the fastest autoregressive engine on CPUs, by ``nar-bench``: who is faster, and where.

    python benchmarks/bench_rivals.py [--batches 1,32] [--sentences 96] [--repeats 3] [--threads 2] [--only NAME]
        [--onnx] [NAR-BENCH'S FLAGS]

Autoregressive Transformers of 6+6 and of 12+1 layers, greedily by fairseq and by CTranslate2 (float32, int8), and
``nat`` with a length head and with CTC on twice the source (float32, and bfloat16 and int8 where the CPU has them in
hardware). All have random weights, 512/1024 dimensions and a vocabulary of 10,000; the sentences are random tokens with
lengths from newstest2014's whole range. Our length head is given the gold lengths; autoregressive outputs are as long
as the longest source of their batch, because the models never predict </s>. So the columns of quality, and the output
of CTC, mean nothing here. At batch size 1 a quarter of the sentences are timed, at others all.

CTranslate2 decodes in a process of its own, in turn with the others (``nar_plugins/measure/worker.py``).

``--onnx`` exports ``nat`` with CTC, too, which takes minutes, and times ONNX Runtime.

Further flags are nar-bench's, such as ``--json FILE`` and ``--memory``. It needs the extra ``ct2``.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Iterator, List, Tuple

import torch
from bench_against_stock import arguments, build, decoding_types, task_of
from bench_one_pass import newstest2014
from fairseq.data import Dictionary

from nar_plugins.cli import bench
from nar_plugins.corpora.distill_data import binarise
from nar_plugins.export.onnx import export
from nar_plugins.modules.fast.int8 import adds_in_16_bits

GREEDY = "--beam 1 --max-len-a 1 --max-len-b -1"  # </s>, which is not counted, makes it as long as the source
MODELS = {  # checkpoint -> architecture and flags of training
    "6-6": ("transformer",),
    "12-1": ("transformer", "--encoder-layers=12", "--decoder-layers=1"),
    "nat": ("nat", "--source-copy=uniform"),
    "ctc": ("nat", "--ctc"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,32", help="batch sizes")
    parser.add_argument("--sentences", type=int, default=96, help="a multiple of 4")
    parser.add_argument("--repeats", default="3")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--words", type=int, default=10000)
    parser.add_argument("--only", default="", help="only the rows whose names begin so")
    parser.add_argument("--onnx", action="store_true", help="rows of ONNX Runtime, too")
    args, more = parser.parse_known_args()
    torch.set_num_threads(args.threads)
    sizes = args.batches.split(",")
    counts = ",".join(str(args.sentences // 4 if size == "1" else args.sentences) for size in sizes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, args.sentences, args.words)
        for model, training in MODELS.items():
            make_checkpoint(folder / f"{model}.pt", args.words, *training)
        exported = list(onnx_rows(folder)) if args.onnx else []
        systems = [
            part for row in [*rows(folder), *exported] if row[0].startswith(args.only) for part in ("--system", *row)
        ]
        amount = ["--batch-sizes", args.batches, "--sentences", counts, "--repeats", args.repeats]
        bench.main([name, "--flags", "--cpu", *amount, "--details", *systems, *more])


def rows(folder: Path) -> Iterator[Tuple[str, str, str]]:
    """Name, checkpoint and flags of every system; the speeds of all are divided by those of the first two."""
    for compute_type in ("int8", "float32"):
        for layers in ("12-1", "6-6"):
            flags = f"{GREEDY} --compute-type {compute_type}"
            yield f"CTranslate2 {layers} {compute_type}", f"ct2:{folder / layers}.pt", flags
    for layers in ("12-1", "6-6"):
        yield f"fairseq {layers}", f"{folder / layers}.pt", GREEDY
    for name, model, flags in (("NAT", "nat", "--gold-length"), ("CTC x 2", "ctc", "")):
        for dtype in decoding_types(torch.device("cpu")):
            yield f"{name} {dtype}", f"{folder / model}.pt", f"--decode-dtype {dtype} {flags}"


def onnx_rows(folder: Path) -> Iterator[Tuple[str, str, str]]:
    """CTC by ONNX Runtime, whose int8 needs VNNI."""
    for dtype in ("float32", "int8")[: 1 if adds_in_16_bits() else 2]:
        made = folder / f"ctc-{dtype}"
        export(str(folder / "ctc.pt"), str(folder), made, [], int8=dtype == "int8")
        yield f"CTC x 2 ONNX Runtime {dtype}", f"onnx:{made}", ""


def make_data(folder: Path, count: int, words: int) -> None:
    """Random pairs of equal lengths, from newstest2014's whole range; so are those of the first quarter."""
    dictionary = Dictionary()
    for i in range(words - 5):  # four special symbols and <mask>
        dictionary.add_symbol(f"w{i}")
    lengths = newstest2014()
    ascending = [lengths[i * len(lengths) // count] for i in range(count)]
    order = [length for first in range(4) for length in ascending[first::4]]
    torch.manual_seed(2)
    for language in ("src", "tgt"):
        dictionary.save(str(folder / f"dict.{language}.txt"))
        sentences = [random_sentence(length, words) for length in order]
        binarise(sentences, str(folder / f"test.src-tgt.{language}"), len(dictionary))


def random_sentence(length: int, words: int) -> torch.Tensor:
    """(length,) int64, </s> at the end."""
    tokens = torch.randint(4, words - 2, (length,))
    tokens[-1] = 2
    return tokens


def make_checkpoint(path: Path, words: int, arch: str, *flags: str) -> None:
    """A model of random weights, as fairseq-train would save it, without an optimizer."""
    model = build(arch, task_of(words), *flags)
    if arch == "transformer":
        with torch.no_grad():
            model.decoder.embed_tokens.weight[2] = 0  # the logit of </s> is 0, the largest of the others above it
    history: List[dict] = [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 1}]
    extra = {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}}
    state = {"args": arguments(arch, *flags), "model": model.state_dict()}
    torch.save({**state, "optimizer_history": history, "extra_state": extra}, path)


if __name__ == "__main__":
    main()
