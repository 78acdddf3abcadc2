"""Which tasks and criterions go with a model. Every command checks it before anything is computed.

A model of this package lists their registered names in ``tasks`` and ``criterions``. fairseq's own models have no such
lists: they go with ``nar_translation`` and with fairseq's own criterions.
"""

from typing import Sequence

from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.models.nat import FairseqNATModel
from fairseq.tasks import TASK_REGISTRY


def check_task(model: type, args, task) -> None:
    """Raise a ValueError unless a task goes with a model and the model's options come from a command line.

    Args:
        model: the model's class. args: its options. task: the task that builds it, or a stand-in of an
            unregistered class.
    """
    names = [name for name, task_class in TASK_REGISTRY.items() if isinstance(task, task_class)]
    if names and not any(isinstance(task, TASK_REGISTRY[name]) for name in model.tasks):
        given = next((name for name in names if TASK_REGISTRY[name] is type(task)), names[0])
        default = ", which fairseq's commands take where none is given" if given == "translation" else ""
        arch = getattr(args, "arch", None) or getattr(args, "_name", model.__name__)
        raise ValueError(
            f"a model of --arch {arch} needs --task {' or '.join(model.tasks)}, and this is {given}{default}"
        )
    # fairseq-hydra-train does not read the flags of a model without a dataclass; OmegaConf 2.0 has None for any name
    if getattr(args, "arch", None) is None:
        name = getattr(args, "_name", model.__name__)
        raise ValueError(
            f"fairseq-hydra-train cannot read the options of {name}: train it with fairseq-train --arch {name}"
        )


def check_foreign_model(args, task) -> None:
    """Raise a ValueError for a model of fairseq's own that a task of this package does not train.

    Args:
        args: the model's options. task: one of this package's.
    """
    arch = getattr(args, "_name", None) or getattr(args, "arch", None)
    model = ARCH_MODEL_REGISTRY.get(arch)
    if model is None or not model.__module__.startswith("fairseq."):
        return
    given = next((name for name, task_class in TASK_REGISTRY.items() if task_class is type(task)), type(task).__name__)
    if issubclass(model, FairseqNATModel):
        raise ValueError(
            f"a model of --arch {arch} is fairseq's own and needs --task translation_lev, and this is {given}"
        )
    if not task.serves_foreign_models:
        trained = [name for name, model_class in MODEL_REGISTRY.items() if given in getattr(model_class, "tasks", ())]
        raise ValueError(
            f"--task {given} trains --arch {' and '.join(trained)}, not {arch}: give --task nar_translation"
        )


def check_criterion(model: type, arch: str, criterion: str) -> None:
    """Raise a ValueError unless a criterion trains a model.

    Args:
        model: the model's class. arch: the name of its architecture. criterion: a registered name.
    """
    criterion_class = CRITERION_REGISTRY.get(criterion)
    if criterion_class is None:  # fairseq refuses it
        return
    allowed = getattr(model, "criterions", ())
    known = criterion_class.__module__.split(".")[0] in (
        "fairseq",
        "nar_plugins",
    )  # a third party's criterion may train any model
    if allowed and known and not is_one_of(criterion_class, allowed):
        default = " (fairseq's default)" if criterion == "cross_entropy" else ""
        hint = "; --ngram 1 with it trains one token a pass" if "bang_loss" in allowed else ""
        right = f"--criterion {' or '.join(allowed)}{hint}"
        raise ValueError(f"--criterion {criterion}{default} does not train --arch {arch}: give {right}")
    if not allowed and criterion == "nat_loss":
        raise ValueError(
            "--criterion nat_loss trains fairseq's own non-autoregressive models, under --task translation_lev, and "
            "not "
            f"{arch}: give cross_entropy or label_smoothed_cross_entropy"
        )
    trained = [
        name
        for name, model_class in MODEL_REGISTRY.items()
        if is_one_of(criterion_class, getattr(model_class, "criterions", ()))
    ]
    if not allowed and trained:
        raise ValueError(
            f"--criterion {criterion} trains --arch {' and '.join(trained)}, not {arch}: an autoregressive model is "
            "trained by cross_entropy or label_smoothed_cross_entropy"
        )


def is_one_of(criterion_class: type, names: Sequence[str]) -> bool:
    """Whether a criterion class is, or derives from, one of the registered names."""
    return any(issubclass(criterion_class, CRITERION_REGISTRY[name]) for name in names if name in CRITERION_REGISTRY)
