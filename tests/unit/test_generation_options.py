"""Every generation option of fairseq's with every generator: a hypothesis of each sentence, or one line that names it.

What the commands print of a hypothesis is in ``test_print_options.py``.
"""

from argparse import Namespace
from functools import lru_cache

import pytest
import torch
from conftest import source_batch
from saved import CRITERIONS, save
from test_registry import REFUSED, SERVED
from tiny import model

SOURCE = source_batch([5, 9, 1, 3], 20)
TARGET = source_batch([4, 6, 1, 5], 20, seed=8)
SIZES = ("--encoder-layers", "1", "--decoder-layers", "1", "--share-all-embeddings")
SYSTEMS = {
    "beam": ("transformer_tiny", (), {}),
    "jacobi": ("transformer_tiny", (), {"generator": "blockwise"}),
    "copy": ("transformer_tiny", (), {"generator": "blockwise", "drafter": "copy"}),
    "heads": ("blockwise_tiny", (), {"beam": 1}),
    "beam of heads": ("blockwise_tiny", (), {}),
    "mask_predict": ("cmlm_tiny", (), {"iterations": 2}),
    "fertilities": ("nat_tiny", (), {}),
    "noisy_parallel": ("nat_tiny", (), {"generator": "noisy_parallel", "rescorer": "AR"}),
    "lengths": ("nat_tiny", ("--source-copy", "uniform"), {"length_beam": 3}),
    "ctc": ("nat_tiny", ("--ctc",), {}),
    "ctc beam": ("nat_tiny", ("--ctc",), {"ctc_beam": 3}),
    **{walk: ("dag_tiny", (), {"dag_decode": walk}) for walk in ("lookahead", "greedy")},
    **{path: ("dag_tiny", (), {"dag_decode": path, "length_beam": 3}) for path in ("viterbi", "joint-viterbi")},
    **{
        policy: ("bang_tiny", (), {"bang_policy": policy})
        for policy in ("adaptive", "ar", "nar", "block", "prefix", "verify", "cascade")
    },
}
OPTIONS = {**REFUSED, **SERVED, "max_len_b": 5}
ELSEWHERE = {"constraints", "lm_path"}  # of batches and of models that fairseq's commands make
NAMED = {  # what a message calls an option by, where it is not its flag
    "max_len_a": "--max-len-a/b",
    "max_len_b": "--max-len-a/b",
    "diverse_beam_groups": "DiverseBeamSearch requires --beam",  # fairseq's own words
}
STOCK = ("beam", "beam of heads", "ar")  # where fairseq's search decodes, which asserts what it needs
UNBOUNDED = ("ctc", "ctc beam", "lookahead", "greedy")


@lru_cache(maxsize=None)
def built(arch: str, *flags: str):
    one, task = model(*SIZES, *flags, arch=arch, criterion=CRITERIONS.get(arch.split("_")[0], "nar_loss"))
    return one.eval(), task


@pytest.fixture(scope="module")
def rescorer(tmp_path_factory):
    return str(save(tmp_path_factory.mktemp("options") / "ar.pt", "transformer_tiny"))


def decode(system: str, rescorer: str, **more) -> list:
    """The hypotheses of the batch, as fairseq-generate asks for them."""
    arch, flags, settings = SYSTEMS[system]
    one, task = built(arch, *flags)
    given = {**({} if system in UNBOUNDED else {"max_len_b": 6}), **settings, **more}
    if "rescorer" in given:
        given["rescorer"] = rescorer
    generator = task.build_generator([one], Namespace(**given))
    lengths = SOURCE.ne(1).sum(1)
    sample = {
        "id": torch.arange(len(SOURCE)),
        "net_input": {"src_tokens": SOURCE, "src_lengths": lengths, "prev_output_tokens": TARGET},
        "target": TARGET,
    }
    prefix = TARGET[:, : given["prefix_size"]] if given.get("prefix_size") else None
    return task.inference_step(generator, [one], sample, prefix_tokens=prefix)


@pytest.mark.parametrize("system", SYSTEMS)
def test_an_option_is_served_or_refused_by_name(system, rescorer):
    served = set()
    for name, value in OPTIONS.items():
        if name in ELSEWHERE:
            continue
        try:
            found = decode(system, rescorer, **{name: value})
        except (ValueError, AssertionError) as error:
            assert isinstance(error, ValueError) or system in STOCK, name
            said, flag = str(error), f"--{name.replace('_', '-')}"
            assert (flag in said or NAMED.get(name, flag) in said) and "\n" not in said
            continue
        assert len(found) == len(SOURCE), name
        for hypos in found:
            assert hypos and all(len(h["tokens"]) and float(h["score"]) <= 0 for h in hypos), name  # NaN is not
        served.add(name)
    assert {"beam", "print_step", "lenpen", "unnormalized", "no_early_stop"} <= served
    assert "iter_decode_with_external_reranker" not in served and (system in STOCK) == ("sampling" in served)
