"""A trained CMLM in fairseq's own loop and in ours, with the same weights: BLEU, passes and sentences a second.

    python benchmarks/bench_trained_cmlm.py CKPT BIN --reference REF [--flags "--cpu --remove-bpe sentencepiece"]
        [--sentences 50,320] [--batch-sizes 1,32] [--repeats 3] [--dtypes float32,int8]

CKPT is a ``cmlm`` of the plain architecture, fairseq's form. Its weights are put into fairseq's ``cmlm_transformer``,
which ``IterativeRefinementGenerator`` decodes with ten passes and five lengths (``--iter-decode-max-iter 9
--iter-decode-force-max-iter --iter-decode-with-beam 5``), its length head included. The other rows are ours: ten passes
over five lengths, and fewer where words that are sure are committed and lengths are compared with their own probability
(docs/models.md). The rows take turns; speeds are divided by those of fairseq's loop.
"""

import argparse
import copy
import logging
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import torch
import torch.nn as nn
from bench_against_stock import decoding_types
from fairseq.iterative_refinement_generator import IterativeRefinementGenerator
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

import nar_plugins  # noqa: F401
from nar_plugins.data.bleu import bleu_metric
from nar_plugins.data.lines import read_lines
from nar_plugins.measure.machine import machine
from nar_plugins.measure.quality import score
from nar_plugins.measure.speed import Row, closing, decode_rows, load_rows, time_rows
from nar_plugins.measure.systems import System
from nar_plugins.measure.table import comparison

STOCK = "cmlm_transformer"
WEIGHTED = "--iterations 10 --length-weight 1"
ROWS = {
    "R = 10, L = 5": "--iterations 10",
    "R = 10, L = 5, weighted": WEIGHTED,
    "commits at 0.8, L = 5, weighted": f"{WEIGHTED} --schedule confidence --confidence-threshold 0.8",
    "commits at 0.8, L = 3, weighted": f"{WEIGHTED} --schedule confidence --confidence-threshold 0.8 --length-beam 3",
    "commits at 0.8, L = 2, weighted": f"{WEIGHTED} --schedule confidence --confidence-threshold 0.8 --length-beam 2",
}


class StockLoop(System):
    """The checkpoint's weights in fairseq's model, decoded by fairseq's loop."""

    def start(self) -> None:
        self.model = stock_model(self.models[0], self.task).eval()
        self.autoregressive, self.cuda = False, torch.cuda.is_available() and not self.cfg.common.cpu
        if self.cuda:
            self.model.cuda()
        self.positions, self.models = [self.models[0].max_positions()], []
        self.generator = IterativeRefinementGenerator(
            self.task.target_dictionary, models=[self.model], max_iter=9, beam_size=5, adaptive=False
        )

    def weight_bytes(self) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())

    def max_positions(self) -> List[tuple]:
        return self.positions

    def hypotheses(self, sample: Dict) -> List[List[Dict]]:
        with torch.no_grad():
            found = self.generator.generate([self.model], sample)
        for hypothesis in (each for hypotheses in found for each in hypotheses):
            hypothesis["steps"] += 1  # fairseq counts from 0
        return found


def stock_model(model, task):
    """fairseq's model with the weights of ours.

    Raises:
        ValueError: the model is no CMLM in fairseq's form.
    """
    args = copy.copy(model.args)
    args.arch, args.label_smoothing = STOCK, 0.0
    ARCH_CONFIG_REGISTRY[STOCK](args)
    stock = ARCH_MODEL_REGISTRY[STOCK].build_model(args, task)
    head = "encoder.length_head.weight"
    state = model.state_dict()
    if head not in state or model.encoder.length_head.form != "pooled":
        raise ValueError("a model with --length-head pooled is needed, fairseq's form")
    # fairseq's table has 256 lengths, whatever the positions
    stock.decoder.embed_length = nn.Embedding(*state[head].shape)
    state["decoder.embed_length.weight"] = state.pop(head)
    missing, unexpected = stock.load_state_dict(state, strict=False)
    other = [name for name in (*missing, *unexpected) if "_float_tensor" not in name and "version" not in name]
    if other:
        raise ValueError(f"fairseq's model has other weights: {', '.join(other[:3])}")
    # fairseq masks with <unk>, and its canvases begin with <s>, on which our models are not trained
    stock.unk = stock.bos = task.mask_index
    return stock


def rows(dtypes: List[str]) -> Iterator[Tuple[str, str]]:
    """Names and flags of our rows."""
    for name, flags in ROWS.items():
        for dtype in dtypes:
            yield f"{name}, {dtype}", f"{flags} --decode-dtype {dtype}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--flags", default="--cpu --remove-bpe sentencepiece")
    parser.add_argument("--batch-sizes", default="1,32")
    parser.add_argument("--sentences", default="50,320", help="how many are timed at each batch size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtypes", help="default: all that the device has in hardware")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    sizes, counts = ([int(part) for part in text.split(",")] for text in (args.batch_sizes, args.sentences))
    device = torch.device("cpu" if "--cpu" in args.flags or not torch.cuda.is_available() else "cuda")
    dtypes = args.dtypes.split(",") if args.dtypes else decoding_types(device)
    flags = f"--task nar_translation {args.flags}"
    found = load_rows(args.data, [(name, args.checkpoint, more) for name, more in rows(dtypes)], flags)
    stock = StockLoop("fairseq's loop", args.checkpoint, args.data, flags.split())
    found.insert(0, Row(stock.name, args.checkpoint, flags.split(), stock))
    with closing(found):
        decode_rows(found)
        references = [read_lines(args.reference)]
        metric = bleu_metric("13a", stock.settings["target_lang"])
        for row in found:
            row.quality = score(row.output.text, references, metric)
        for size, count in zip(sizes, counts):
            time_rows(found, size, count, args.repeats)
        print(comparison(found, sizes, machine(stock.cuda)))


if __name__ == "__main__":
    main()
