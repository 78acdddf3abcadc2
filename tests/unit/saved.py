"""fairseq's generation commands on checkpoints of tiny random models, fast enough for hundreds of runs.

The command line is parsed once; then ``main``, all of the command but its parser, gets a copy of the configuration with
the options of a run in it.
"""

import contextlib
import copy
import io
from functools import lru_cache
from pathlib import Path

import torch
from conftest import ROOT, hypotheses, preprocess, write_pairs
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from in_process import MAINS
from omegaconf import OmegaConf
from tiny import configuration, dictionary

from nar_plugins.tasks.translation import NarTranslationTask

PARSERS = {
    "fairseq-generate": options.get_generation_parser,
    "fairseq-interactive": options.get_interactive_generation_parser,
}
CRITERIONS = {"blockwise": "blockwise_loss", "bang": "bang_loss", "transformer": "cross_entropy"}
SIZE = [
    f"--{side}-{what}"
    for side in ("encoder", "decoder")
    for what in ("embed-dim=16", "ffn-embed-dim=16", "attention-heads=2", "layers=1")
]


def save(path: Path, arch: str, *flags: str, seed: int = 1, scale: float = 4.0, words: int = 20) -> Path:
    """A checkpoint of ``arch`` with one layer of width 16; its weights are large, so that it is sure of various
    things.
    """
    flags = (*SIZE, "--share-all-embeddings", *flags)
    given = {"arch": arch, "criterion": CRITERIONS.get(arch.split("_")[0], "nar_loss")}
    config = configuration(*flags, **given)
    task = NarTranslationTask(config.task, dictionary(words), dictionary(words))
    torch.manual_seed(seed)
    made = task.build_model(config.model)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.dim() > 1 and "norm" not in name:
                weight.mul_(scale)
    history = [{"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 1}]
    torch.save(
        {
            "args": None,
            "cfg": OmegaConf.to_container(config),
            "model": made.state_dict(),
            "optimizer_history": history,
            "task_state": {},
            "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        },
        path,
    )
    return path


def corpus(folder: Path, pairs, words: int = 20, **options_) -> Path:
    """The pairs as split ``test`` over the dictionary of ``tiny``, binarised; what fairseq-generate takes."""
    write_pairs(folder, pairs, "test")
    dictionary(words).save(str(folder / "dict.txt"))
    return preprocess(folder, folder / "bin", srcdict=folder / "dict.txt", **options_)


@lru_cache(maxsize=None)
def parsed(command: str):
    """The configuration of a command with this package's task on the CPU."""
    given = [
        "data",
        "--user-dir",
        str(ROOT / "nar_plugins"),
        "--task",
        "nar_translation",
        "--cpu",
        "--path",
        "model.pt",
        "--num-workers",
        "0",
        "-s",
        "src",
        "-t",
        "tgt",
    ]
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(PARSERS[command](), given))


def run(command: str, data: Path, path, **settings) -> str:
    """What a command prints; ``settings`` are options of any group (``nbest=2``), as Python's values."""
    config = copy.deepcopy(parsed(command))
    config.task.data, config.common_eval.path = str(data), str(path)
    for name, value in settings.items():
        groups = [group for group in config.values() if OmegaConf.is_dict(group) and name in group]
        assert groups, name
        for group in groups:
            group[name] = value
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        MAINS[command].main(config)
    return out.getvalue()


def translations(*arguments_, **settings) -> dict:
    """Number of the line -> its hypotheses' texts."""
    return {i: [fields[1] for fields in found] for i, found in hypotheses(run(*arguments_, **settings)).items()}
