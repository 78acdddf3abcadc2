"""Comparing a checkpoint's dictionaries with the data's, by stored symbols or by the files it was trained with."""

from pathlib import Path
from typing import Dict, List, Optional

from fairseq import utils
from fairseq.data import Dictionary

from nar_plugins.data.dictionary import check_same_symbols, load_dictionary


def stored_symbols(dictionaries: Dict[str, Dictionary]) -> Dict[str, Dict[str, str]]:
    """The entry of a checkpoint's ``task_state`` for the symbols of its dictionaries, by side."""
    return {"symbols": {side: "\n".join(dictionary.symbols) for side, dictionary in dictionaries.items()}}


def kept_symbols(task_state: Optional[Dict]) -> Dict[str, List[str]]:
    """The stored symbols of a checkpoint's dictionaries, by side; empty if its task stores none.

    Args:
        task_state: the checkpoint's; None if it has none.
    """
    return {side: text.split("\n") for side, text in (task_state or {}).get("symbols", {}).items()}


def check_stored_symbols(task_state: Optional[Dict], side: str, dictionary: Dictionary, name: str) -> bool:
    """Raise when a checkpoint's stored symbols differ from a dictionary; returns whether it stores any.

    Args:
        task_state: see ``kept_symbols``.
        name: the dictionary's name in the message.

    Raises:
        ValueError: a symbol differs; the first is named.
    """
    symbols = kept_symbols(task_state).get(side)
    if symbols is not None:
        check_same_symbols(symbols, dictionary.symbols, name)
    return symbols is not None


def check_symbols_of_files(cfg, weights, task) -> None:
    """Raise when the dictionary files that a checkpoint was trained with still exist and differ from the task's.

    A checkpoint of fairseq's ``translation`` stores no symbols, only the path of its data. A file whose size differs
    from the checkpoint's vocabulary (apart from ``<mask>``) has been replaced since, and is ignored.

    Args:
        cfg: the checkpoint's.
        weights: its parameters by name.
    """
    folder = utils.split_paths(cfg.task.data or "")[0]
    # the checkpoint does not store inferred languages; they are then taken from the task
    sides = (
        ("source", cfg.task.source_lang or task.cfg.source_lang, "encoder", task.source_dictionary),
        ("target", cfg.task.target_lang or task.cfg.target_lang, "decoder", task.target_dictionary),
    )
    for side, language, part, ours in sides:
        file = Path(folder, f"dict.{language}.txt")
        table = weights.get(f"{part}.embed_tokens.weight")
        if table is None or not file.is_file():
            continue
        theirs = load_dictionary(str(file)).symbols
        if len(table) - len(theirs) in (0, 1):
            check_same_symbols(theirs, ours.symbols, f"the {side} dictionary of {task.cfg.data}")
