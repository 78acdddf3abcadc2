"""A checkpoint is read, measured, pruned, measured again and written."""

import math
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional

import torch
import torch.nn as nn
from fairseq import checkpoint_utils, utils
from fairseq.models import ARCH_MODEL_REGISTRY
from torch import Tensor

from nar_plugins.checkpoint_io.read import read_mapped, read_upgraded
from nar_plugins.data.noise import VALIDATION_UPDATE
from nar_plugins.data.whole_file import check_output, written_whole
from nar_plugins.models.bang.model import BangModel
from nar_plugins.models.base import NarModel
from nar_plugins.models.blockwise.model import BlockwiseModel
from nar_plugins.modules.factorised import factorise, is_tied
from nar_plugins.modules.pruned import KEPT, SIDES, sizes_of
from nar_plugins.pruning.choice import choose
from nar_plugins.pruning.importance import Key, parts_of_model, recorded

OURS = (NarModel, BlockwiseModel, BangModel)
TASK = "nar_translation"
SIMPLY = {"eval_bleu": False, "checkpoint_activations": False, "offload_activations": False}


class Plan(NamedTuple):
    """What is removed.

    Attributes:
        heads, ffn, scope, multiple: see ``choose``.
        layers: "encoder" and "decoder" -> the layers that are kept, as fairseq writes them ("0,2"); None: all.
        rank: K of the factorised table of words (``modules/factorised.py``); None: it stays.
    """

    heads: float = 0.0
    ffn: float = 0.0
    scope: str = "global"
    multiple: int = 8
    layers: Dict[str, Optional[str]] = {}
    rank: Optional[int] = None


class Pruned(NamedTuple):
    """What was done.

    Attributes:
        before, after: the number of weights by part of the model (``weights_by_part``).
        loss_before, loss_after: of the validation data, in bits a target, as fairseq logs it.
        kept: the units of every part that remain, of the layers that remain. units: how many there were.
        layers: "encoder" and "decoder" -> the numbers of the layers that remain. all_layers: how many there were.
    """

    before: Dict[str, int]
    after: Dict[str, int]
    loss_before: float
    loss_after: float
    kept: Dict[Key, Tensor]
    units: Dict[Key, int]
    layers: Dict[str, List[int]]
    all_layers: Dict[str, int]


class Validation:
    """A checkpoint's model with the criterion of its training and validation data.

    Args:
        path: the checkpoint. data: the folder of binarised data. split: of it.
        max_tokens: of a batch. cpu: also where there is a GPU.
        layers: "encoder" and "decoder" -> the layers to load, as fairseq writes them; empty: all.

    Raises:
        ValueError: the checkpoint or the data cannot be used.
    """

    def __init__(self, path: str, data: str, split: str, max_tokens: int, cpu: bool, layers: Dict[str, str]):
        chosen = {f"{side}_layers_to_keep": kept for side, kept in layers.items()}
        (self.model,), cfg, self.task = checkpoint_utils.load_model_ensemble_and_task(
            [path], arg_overrides={"data": data, **SIMPLY, **chosen}
        )
        self.task.load_dataset(split, task_cfg=cfg.task)
        self.device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
        self.model.float().requires_grad_(True).to(self.device).eval()
        self.model.args.freeze_base = False  # of a blockwise model: the loss of its base counts, and has a gradient
        self.criterion = self.task.build_criterion(cfg.criterion).to(self.device)
        self.criterion.eval()
        self.split, self.max_tokens = split, max_tokens

    def batches(self) -> Iterator[Dict]:
        """The batches with the noise of a validation."""
        limits = utils.resolve_max_positions(self.task.max_positions(), self.model.max_positions())
        try:
            epoch = self.task.get_batch_iterator(
                self.task.dataset(self.split), self.max_tokens, max_positions=limits, ignore_invalid_inputs=True
            ).next_epoch_itr(shuffle=False)
        except AssertionError as error:  # of fairseq's batches
            raise ValueError(
                f"--max-tokens {self.max_tokens}: a sentence of the split '{self.split}' is longer: raise it"
            ) from error
        for sample in epoch:
            sample = utils.move_to_cuda(sample) if self.device.type == "cuda" else sample
            yield self.task.corrupt(sample, VALIDATION_UPDATE)

    def loss(self) -> float:
        """The mean loss in bits a target."""
        with torch.no_grad():
            return self.mean(self.criterion(self.model, sample) for sample in self.batches()) / math.log(2)

    def importance(self) -> Dict[Key, Tensor]:
        """The importance (units,) of every unit, in nats a target; see ``importance.py``."""
        with recorded(self.model) as sums, torch.enable_grad():
            targets = 0.0
            for sample in self.batches():
                loss, size, _ = self.criterion(self.model, sample)
                loss.backward()
                self.model.zero_grad(set_to_none=True)
                targets += float(size)
        return {key: units / targets for key, units in sums.items()}

    def mean(self, results) -> float:
        """The loss over the number of targets, of a criterion's results."""
        loss, targets = 0.0, 0.0
        for part, size, _ in results:
            loss, targets = loss + float(part), targets + float(size)
        if targets == 0:
            raise ValueError(f"the split '{self.split}' has no target to measure a loss on: give another --split")
        if not math.isfinite(loss):
            raise ValueError(f"the loss on the split '{self.split}' is {loss}: the weights are of no use")
        return loss / targets


def prune(
    path: str,
    data: str,
    out: Optional[Path],
    plan: Plan,
    split: str = "valid",
    max_tokens: int = 4000,
    cpu: bool = False,
) -> Pruned:
    """Write a checkpoint without the least important units and without some layers.

    Args:
        path: a checkpoint. data: the folder of its data. out: the new checkpoint; None: nothing is written.
        split, max_tokens, cpu: see ``Validation``.

    Raises:
        ValueError: something that is given cannot be used.
    """
    check_plan(plan)
    if max_tokens < 1:
        raise ValueError(f"--max-tokens {max_tokens}: give a number from 1 up")
    if out is not None:
        check_output(out, "--out", makes_folder=True)
        if out.exists() and Path(path).exists() and out.samefile(path):
            raise ValueError(f"--out {out} is the checkpoint itself: give another file")
    all_layers = check_checkpoint(path, plan)
    whole = Validation(path, data, split, max_tokens, cpu, {})
    before, loss_before = weights_by_part(whole.model), whole.loss()
    cut, layers = whole, {side: numbers_of(plan.layers.get(side), all_layers[side]) for side in SIDES}
    if any(kept is not None for kept in plan.layers.values()):
        # of both sides: where fairseq is given those of one, it leaves out the other's layers
        chosen = {side: ",".join(map(str, numbers)) for side, numbers in layers.items()}
        cut = Validation(path, data, split, max_tokens, cpu, chosen)
    parts = parts_of_model(cut.model)
    units = {key: part.units for key, part in parts.items()}
    if plan.heads or plan.ffn:
        kept = choose(cut.importance(), plan.heads, plan.ffn, plan.scope, plan.multiple)
    else:
        kept = {key: torch.arange(number) for key, number in units.items()}
    for key, part in parts.items():
        if len(kept[key]) < part.units:
            part.keep(kept[key])
    if plan.rank is not None:
        check_rank(plan.rank, cut.model)
        symbols = cut.task.target_dictionary
        factorise(cut.model, plan.rank, torch.tensor(symbols.count[: len(symbols)]).clamp(min=1))
    after, loss_after = weights_by_part(cut.model), cut.loss()
    if out is not None:
        write(path, out, cut.model)
    return Pruned(before, after, loss_before, loss_after, kept, units, layers, all_layers)


def check_plan(plan: Plan) -> None:
    """Raise for shares that are none, and where nothing is asked for."""
    for flag, share in (("--prune-heads", plan.heads), ("--prune-ffn", plan.ffn)):
        if share == 1:
            raise ValueError(f"{flag} 1: nothing would be left; give a share below 1")
        if not 0 <= share < 1:
            raise ValueError(f"{flag} {share:g}: give the share that is removed, from 0 up to, not including, 1")
    if plan.multiple < 1:
        raise ValueError(f"--multiple {plan.multiple}: give a number from 1 up")
    if not (plan.heads or plan.ffn or plan.rank is not None or any(kept is not None for kept in plan.layers.values())):
        raise ValueError(
            "nothing is to be removed: give --prune-heads, --prune-ffn, --encoder-layers-to-keep, "
            "--decoder-layers-to-keep or --embedding-rank"
        )


def check_checkpoint(path: str, plan: Plan) -> Dict[str, int]:
    """The number of layers of each side; raise for a checkpoint that cannot be pruned."""
    cfg = read_upgraded(path)["cfg"]
    args = cfg.model
    arch = getattr(args, "_name", None) or getattr(args, "arch", None)
    kind = ARCH_MODEL_REGISTRY.get(arch)
    if kind is None or not issubclass(kind, OURS):
        raise ValueError(
            f"{path} holds a model '{arch}', which is none of this package: nar-prune prunes nat, cmlm, dag, blockwise "
            "and bang"
        )
    if cfg.task._name != TASK:
        raise ValueError(f"{path} was trained under --task {cfg.task._name}: nar-prune needs one of {TASK}")
    if getattr(args, KEPT, None):
        raise ValueError(f"{path} was pruned already: prune the checkpoint that it was made of, by a larger share")
    for name in ("quant_noise_pq", "quant_noise_scalar"):
        if getattr(args, name, 0):
            raise ValueError(
                f"{path} was trained with --{name.replace('_', '-')}: the weights of quantised layers are shared in "
                "blocks, and cannot be removed one by one"
            )
    if getattr(args, "scale_fc", False):
        raise ValueError(f"{path} was trained with --scale-fc, a norm over all feed-forward units: none can be removed")
    numbers = {side: getattr(args, f"{side}_layers") for side in SIDES}
    for side, kept in plan.layers.items():
        if kept is not None:
            check_layers(kept, numbers[side], side)
    return numbers


def check_rank(rank: int, model: nn.Module) -> None:
    """Raise where the table of words cannot be factorised."""
    if not isinstance(model, NarModel):
        raise ValueError(f"--embedding-rank {rank} is for nat, cmlm and dag, and this is a {type(model).__name__}")
    if not is_tied(model):
        raise ValueError(
            f"--embedding-rank {rank}: the model has several tables of words (it was trained without "
            "--share-all-embeddings)"
        )
    width = model.encoder.embed_tokens.embedding_dim
    if not 0 < rank < width:
        raise ValueError(
            f"--embedding-rank {rank}: the embeddings are {width} wide; give a number from 1 to {width - 1}"
        )


def check_layers(kept: str, number: int, side: str) -> None:
    """Raise unless a list of layers names some of them, each once."""
    flag = f"--{side}-layers-to-keep {kept!r}"
    names = names_of(kept)
    if not names:
        raise ValueError(f"{flag}: nothing would be left; name one layer at least, as in 0,2")
    if not all(name.isdecimal() and int(name) < number for name in names) or len(set(map(int, names))) < len(names):
        raise ValueError(f"{flag}: name some of the {side}'s layers 0 to {number - 1}, each once, as in 0,2")


def names_of(kept: str) -> List[str]:
    """The layers that a list names, as they are written."""
    return [name.strip() for name in kept.split(",") if name.strip()]


def numbers_of(kept: Optional[str], number: int) -> List[int]:
    """The numbers of the layers that are kept."""
    return list(range(number)) if kept is None else sorted(map(int, names_of(kept)))


def weights_by_part(model: nn.Module) -> Dict[str, int]:
    """The number of weights of the embeddings, of the layers of encoder and decoder, and of all others; shared ones
    count once.
    """
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    tables += [model.encoder.embed_tokens, model.decoder.embed_tokens, model.decoder.output_projection]
    groups = {"embeddings": tables, "encoder": [model.encoder.layers], "decoder": [model.decoder.layers]}
    seen, numbers = set(), {}
    for name, modules in (*groups.items(), ("others", [model])):
        parameters = {id(p): p for module in modules for p in module.parameters() if id(p) not in seen}
        seen.update(parameters)
        numbers[name] = sum(p.numel() for p in parameters.values())
    return numbers


def write(path: str, out: Path, model: nn.Module) -> None:
    """Write the checkpoint of a pruned model; what is no weight is that of the checkpoint before."""
    state = read_mapped(path)
    given = state["model"]
    kind = next(tensor.dtype for tensor in given.values() if tensor.is_floating_point())
    state["model"] = {
        name: tensor.to(kind) if tensor.is_floating_point() else tensor
        for name, tensor in model.cpu().state_dict().items()
    }
    sizes = sizes_of(model)
    options = {KEPT: sizes, **{f"{side}_layers": len(sizes[side]) for side in SIDES}}
    arguments = state["cfg"]["model"] if state.get("cfg") else state["args"]
    (arguments if isinstance(arguments, dict) else vars(arguments)).update(options)
    state["last_optimizer_state"] = None  # it would not fit
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as temporary:
        torch.save(state, temporary)
