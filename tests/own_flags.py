"""The command-line flags that this package adds to fairseq's."""

import argparse
from typing import Dict, List

from fairseq.criterions import CRITERION_REGISTRY
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import MODEL_REGISTRY
from fairseq.tasks import TASK_REGISTRY
from fairseq.tasks.translation import TranslationConfig

import nar_plugins  # noqa: F401


def own_actions() -> Dict[str, List[argparse.Action]]:
    """Who -> its arguments, of this package's tasks, models and criterions, without those of fairseq's bases."""
    found = {}

    def add(who, fill, base=None):
        parser, inherited = argparse.ArgumentParser(), argparse.ArgumentParser()
        fill(parser)
        if base is not None:
            base(inherited)
        theirs = {action.dest for action in inherited._actions} | {"help"}
        found[who] = [action for action in parser._actions if action.dest not in theirs]

    for name, cls in TASK_REGISTRY.items():
        if cls.__module__.startswith("nar_plugins"):
            add(f"task {name}", cls.add_args, lambda p: gen_parser_from_dataclass(p, TranslationConfig(), True))
    for name, cls in MODEL_REGISTRY.items():
        if cls.__module__.startswith("nar_plugins"):
            add(f"model {name}", cls.add_args, MODEL_REGISTRY["transformer"].add_args)
    for name, cls in CRITERION_REGISTRY.items():
        if cls.__module__.startswith("nar_plugins"):
            add(f"criterion {name}", lambda p, c=cls: gen_parser_from_dataclass(p, getattr(c, "__dataclass")()))
    return found
