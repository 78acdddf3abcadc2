"""A packed model: a folder with all that a translation needs, of which nothing runs code when it is read.

model.safetensors       the weights; tied ones once, their other names in the file's metadata
config.json             the model's arguments, the languages, the options of sub-words, and the files' fingerprints
dict.LANGUAGE.txt       the dictionaries
README.md               a card for people; nothing reads it
sentencepiece.bpe.model, bpecodes ...   files of the options, under the names by which fairseq's own hub finds them
"""

import json
import math
import shutil
from argparse import Namespace
from enum import Enum
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch.nn as nn
from fairseq.models import ARCH_MODEL_REGISTRY
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from nar_plugins.data.whole_file import fingerprint
from nar_plugins.hub.decoder import overrides_of
from nar_plugins.hub.errors import in_one_line
from nar_plugins.hub.options import ENCODERS, LANGUAGES, text_options

FORMAT = 1
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
KINDS = {"format": int, "model": dict, "languages": list, "options": dict, "option_files": dict, "files": dict}
FILE_NAMES = {"sentencepiece_model": "sentencepiece.bpe.model", "bpe_codes": "bpecodes"}  # fairseq's hub_utils
TIED = "tied"  # the key in the metadata of the weights


class Contents(NamedTuple):
    """What a folder is made of.

    Attributes:
        model: the model's arguments.
        weights: its state by name.
        dictionaries: language -> file, source first.
        options: of sub-words, as keywords of ``from_pretrained``; values that are files are copied.
    """

    model: Dict[str, Any]
    weights: Dict[str, Tensor]
    dictionaries: Dict[str, Path]
    options: Dict[str, Any]


# -- writing -----------------------------------------------------------------------------------------------------------


def write(folder: Path, contents: Contents) -> None:
    """Write everything but the card into an empty folder."""
    write_weights(contents.weights, folder / WEIGHTS)
    for language, dictionary in contents.dictionaries.items():
        shutil.copyfile(dictionary, folder / f"dict.{language}.txt")
    options, option_files = {}, {}
    for name, value in contents.options.items():
        if name not in ENCODERS and isinstance(value, str) and Path(value).is_file():
            option_files[name] = free_name(folder, FILE_NAMES.get(name, Path(value).name), name)
            shutil.copyfile(value, folder / option_files[name])
        else:
            options[name] = value
    config = {
        "format": FORMAT,
        "model": contents.model,
        "languages": [*contents.dictionaries],
        "options": options,
        "option_files": option_files,
        "files": {path.name: fingerprint(path) for path in sorted(folder.iterdir())},
    }
    text = json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")


def free_name(folder: Path, file: str, option: str) -> str:
    """The name of an option's file in a folder: its own, or one with the option's where another file has that."""
    return f"{option}.{file}" if file in (CONFIG, CARD) or (folder / file).exists() else file


def write_weights(weights: Dict[str, Tensor], path: Path) -> None:
    """Write tensors; of those that are one tensor in memory, the first is stored."""
    from safetensors.torch import save_file  # here, and in read_weights: what only reads checkpoints does without it

    first: Dict[tuple, str] = {}
    tied = {}
    for name, tensor in weights.items():
        same = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and first.setdefault(same, name) != name:
            tied[name] = first[same]
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items() if name not in tied}
    save_file(stored, str(path), {"format": "pt", TIED: json.dumps(tied)})


def plain_arguments(args, path: str) -> Dict[str, Any]:
    """The arguments of a checkpoint's model as JSON values; paths of the machine that trained it are left out.

    Args:
        args: ``cfg.model`` of the checkpoint. path: the checkpoint, for messages.

    Raises:
        ValueError: an argument is no plain value; it is named.
    """
    values = OmegaConf.to_container(args, resolve=True) if isinstance(args, DictConfig) else vars(args)
    found = {}
    for name, value in values.items():
        if name.endswith(("_path", "_from")) or (isinstance(value, str) and ("/" in value or "\\" in value)):
            continue
        try:
            found[name] = plain(value)
        except TypeError as error:
            raise ValueError(
                f"{path}: its model has an argument {name} that is {error}: it cannot be packed"
            ) from error
    return found


def plain(value):
    """A value as JSON has it; raises TypeError, with the type, for one that JSON has not."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, DictConfig):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise TypeError(f"{value!r}" if isinstance(value, float) else type(value).__name__)


# -- reading -----------------------------------------------------------------------------------------------------------


def read(folder: Path) -> Dict[str, Any]:
    """The ``config.json`` of a folder, when all files are those that ``nar-pack`` wrote.

    Raises:
        ValueError: the folder is not one of ``nar-pack``, is of another version, or a file is missing or another one.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONFIG}: give a folder that nar-pack wrote, or a checkpoint file")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): copy the folder again, or pack the checkpoint again") from error
    version = config.get("format") if isinstance(config, dict) else None
    if not isinstance(version, int):
        raise ValueError(f"{path} is not of nar-pack: it has no 'format'; give a folder that nar-pack wrote")
    if version != FORMAT:
        raise ValueError(
            f"{folder} has the format {version}, this nar_plugins reads {FORMAT}: pack the checkpoint with this version"
        )
    for name, kind in KINDS.items():
        if not isinstance(config.get(name), kind):
            raise ValueError(f"{path} has no '{name}': copy the folder again, or pack the checkpoint again")
    for name in (WEIGHTS, *(f"dict.{language}.txt" for language in config["languages"])):
        if name not in config["files"]:
            raise ValueError(f"{path} does not name {name} in 'files': pack the checkpoint again")
    for name, content in config["files"].items():
        check_file(folder, name, content)
    return config


def check_file(folder: Path, name: str, content: str) -> None:
    """Raise unless a file of a folder has this fingerprint."""
    if Path(name).name != name:
        raise ValueError(f"{folder / CONFIG} names the file {name}: all files stand in the folder itself")
    if not (folder / name).is_file():
        raise ValueError(f"{folder} has no {name}: copy the whole folder again")
    if fingerprint(folder / name) != content:
        raise ValueError(
            f"{folder / name} is not the file that nar-pack wrote: copy the folder again, or pack the checkpoint again"
        )


def options_of(config: Dict, folder: Path) -> Dict[str, Any]:
    """The options of a folder as keywords of ``from_pretrained``.

    Raises:
        ValueError: the folder sets other options than those of text, or names a file that it has not.
    """
    if len(config["languages"]) != 2:
        raise ValueError(f"{folder / CONFIG} has the languages {config['languages']}: a source and a target are needed")
    for name in {*config["options"], *config["option_files"]} - text_options():
        raise ValueError(f"{folder / CONFIG} sets {name}, which is no option of sub-words: pack the checkpoint again")
    for name, file in config["option_files"].items():
        if file not in config["files"]:
            raise ValueError(
                f"{folder / CONFIG} names {file} for {name}, and not in 'files': pack the checkpoint again"
            )
    languages = dict(zip(LANGUAGES, config["languages"]))
    files = {name: str(folder / file) for name, file in config["option_files"].items()}
    return {**languages, **config["options"], **files}


def load_model(config: Dict, folder: Path, task, cfg) -> nn.Module:
    """The model of a folder, on the CPU.

    Args:
        cfg: of ``fairseq-generate``, for ``--model-overrides``.

    Raises:
        ValueError: the model is not known here, or the weights do not fit it.
    """
    args = Namespace(**{**config["model"], **overrides_of(cfg)})
    arch = getattr(args, "_name", None) or getattr(args, "arch", None)
    if arch not in ARCH_MODEL_REGISTRY:
        raise ValueError(f"{folder} holds a model '{arch}', which is not registered here: import its package first")
    weights = read_weights(folder / WEIGHTS)
    try:
        model = task.build_model(args, from_checkpoint=True)
    except Exception as error:  # of any kind: the arguments are what a file says
        raise ValueError(f"{folder / CONFIG}: its model cannot be built: {in_one_line(error)}") from error
    try:
        model.load_state_dict(weights, strict=True, model_cfg=args)
    except RuntimeError as error:
        raise ValueError(f"{folder / WEIGHTS} does not fit {CONFIG}: {first_problem(error)}") from error
    return model


def read_weights(path: Path) -> Dict[str, Tensor]:
    """The tensors by name, tied ones under each of their names.

    Raises:
        ValueError: the file is truncated or not of this kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}
            tied = json.loads((file.metadata() or {}).get(TIED, "{}"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file: copy the folder again") from error
    return {**weights, **{name: weights[stored] for name, stored in tied.items()}}


def first_problem(error: RuntimeError) -> str:
    """The first problem in PyTorch's message about weights that do not fit."""
    lines: List[str] = [line.strip() for line in str(error).splitlines()]
    problem = next((line for line in lines[1:] if line), lines[0])
    return problem if len(problem) <= 200 else f"{problem[:200]} ..."


# -- the card ----------------------------------------------------------------------------------------------------------


def card(name: str, contents: Contents, generator: str, bleu: Optional[str], command: Optional[str]) -> str:
    """The README.md of a folder.

    Args:
        name: the folder's. generator: the default one. bleu, command: as the user gave them, or None.
    """
    source, target = contents.dictionaries
    arch = contents.model.get("arch") or contents.model.get("_name")
    sub_words = contents.options.get("bpe")
    size = sum(tensor.numel() for tensor in distinct(contents.weights).values())
    rows: List[Tuple[str, str]] = [
        ("languages", f"{source} to {target}"),
        ("architecture", f"`{arch}`, {size / 1e6:.1f} million weights"),
        ("generator", f"`{generator}`"),
        ("sub-words", f"`{sub_words}`, in this folder" if sub_words else "none here: give text that is split already"),
    ]
    rows += [("BLEU", bleu)] if bleu else []
    rows += [("measured by", f"`{command}`")] if command else []
    cells = [(key, " ".join(value.split()).replace("|", "\\|")) for key, value in rows]  # a row is one line
    table = "\n".join(f"| {key} | {value} |" for key, value in cells)
    return (
        f"# {name}\n\nA translation model of [fairseq](https://github.com/facebookresearch/fairseq) and nar_plugins, "
        f"packed by `nar-pack`.\n\n| | |\n|---|---|\n{table}\n\n"
        f'```python\nfrom nar_plugins.hub import from_pretrained\n\ntranslator = from_pretrained("{name}")\n'
        'print(translator.translate(["..."])[0].text)\n```\n'
    )


def distinct(weights: Dict[str, Tensor]) -> Dict[int, Tensor]:
    """The tensors that differ in memory."""
    return {tensor.data_ptr(): tensor for tensor in weights.values()}
