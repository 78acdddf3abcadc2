"""Which criterions train a model and which tasks serve it, as its class declares, asked in every direction.

A model class of this package has ``criterions`` and ``tasks``, names as fairseq registers them, its own first. fairseq's
models declare nothing: ``nar_translation`` serves them beside fairseq's own tasks. What is registered by a user and inherits
from a declared class is as good as it.
"""
from argparse import SUPPRESS, ArgumentParser, Namespace
from typing import List, Optional

from fairseq.criterions import CRITERION_REGISTRY
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.models.nat import FairseqNATModel
from fairseq.tasks import TASK_REGISTRY, FairseqTask
from omegaconf import OmegaConf

SERVES_FAIRSEQS = ("nar_translation",)  # of this package's tasks, those that serve fairseq's own models, too


def model_name(cfg) -> Optional[str]:
    """``--arch``, or what a yaml file has for it, in the options of a model."""
    return getattr(cfg, "_name", None) or getattr(cfg, "arch", None)


def model_class(cfg) -> Optional[type]:
    """The class of the model whose options these are; None: fairseq will say that there is none."""
    name = model_name(cfg)
    return ARCH_MODEL_REGISTRY.get(name, MODEL_REGISTRY.get(name))


def check_task(kind: type, cfg, task) -> None:
    """Raise unless the task serves the model.

    Args:
        kind: the model's class. cfg: its options.
        task: fairseq's or this package's; what is no task, a stand-in, is not judged.
    """
    if not isinstance(task, FairseqTask):
        return
    arch, given = model_name(cfg), registered_name(TASK_REGISTRY, type(task))
    if issubclass(kind, FairseqNATModel):
        raise ValueError(f"--arch {arch} is fairseq's own, and needs --task translation_lev: the task here is {given}")
    names = getattr(kind, "tasks", SERVES_FAIRSEQS)
    if isinstance(task, tuple(TASK_REGISTRY[name] for name in names)):
        return
    if not hasattr(kind, "tasks"):
        raise ValueError(f"--task {given} trains --arch {either(declared('tasks', given))}: for --arch {arch} give --task "
                         f"{either(names)}")  # fmt: skip
    default = " (fairseq's when none is given)" if given == "translation" else ""
    raise ValueError(f"--arch {arch} needs --task {either(names)}, in training, validation and generation: the task here is "
                     f"{given}{default}")  # fmt: skip


def check_criterion(kind: type, cfg, name: str) -> None:
    """Raise unless the criterion trains the model.

    Args:
        kind: the model's class. cfg: its options. name: as the criterion is registered.
    """
    arch = model_name(cfg)
    criterions = getattr(kind, "criterions", None)
    if criterions is None:  # fairseq's model
        ours = [one for one in all_declared("criterions") if fits(name, (one,))]
        if ours:
            raise ValueError(wrong_model(ours[0], arch))
        if name == "nat_loss":
            raise ValueError("--criterion nat_loss trains fairseq's own non-autoregressive models, under --task translation_lev: "
                             f"for --arch {arch} give cross_entropy or label_smoothed_cross_entropy")  # fmt: skip
    elif not fits(name, criterions):
        default = " (fairseq's when none is given)" if name == "cross_entropy" else ""
        hint = getattr(kind, "criterion_hint", None)
        raise ValueError(f"--arch {arch} needs --criterion {either(criterions)}: the criterion here is {name}{default}"
                         + (f"; {hint}" if hint else ""))  # fmt: skip


def check_criterion_task(name: str, task) -> None:
    """Raise when no model that the criterion trains can be under this task.

    Args:
        name: one of this package's criterions. task: see ``check_task``.
    """
    tasks = list(dict.fromkeys(one for kind in trained_by(name) for one in kind.tasks))
    if isinstance(task, FairseqTask) and not isinstance(task, tuple(TASK_REGISTRY[one] for one in tasks)):
        raise ValueError(f"--criterion {name} needs --task {either(tasks)}: the task here is "
                         f"{registered_name(TASK_REGISTRY, type(task))}")  # fmt: skip


def wrong_model(name: str, model) -> str:
    """The message for one of this package's criterions and a model that it does not train.

    Args:
        model: an architecture's name, or the model itself.
    """
    other = getattr(type(model), "criterions", None)
    arch = f"--arch {model}" if isinstance(model, str) else f"a {type(model).__name__}"
    instead = f"--criterion {either(other)}" if other else "cross_entropy or label_smoothed_cross_entropy"
    return (f"--criterion {name} trains this package's models {either(declared('criterions', name), 'and')}: for {arch} give "
            f"{instead}")  # fmt: skip


# -- what is declared ----------------------------------------------------------------------------------------------------

def trained_by(criterion: str) -> List[type]:
    """The registered models that declare a criterion."""
    return [kind for kind in MODEL_REGISTRY.values() if criterion in getattr(kind, "criterions", ())]


def declared(attribute: str, name: str) -> List[str]:
    """The registered names of the models that declare a task or criterion."""
    return [arch for arch, kind in MODEL_REGISTRY.items() if name in getattr(kind, attribute, ())]


def all_declared(attribute: str) -> List[str]:
    """Every task or criterion that a model declares."""
    return list(dict.fromkeys(name for kind in MODEL_REGISTRY.values() for name in getattr(kind, attribute, ())))


def fits(name: str, criterions) -> bool:
    """Whether a criterion is one of these, or inherits from one."""
    wanted = tuple(CRITERION_REGISTRY[one] for one in criterions if one in CRITERION_REGISTRY)
    return name in criterions or issubclass(CRITERION_REGISTRY.get(name, object), wanted)


def registered_name(registry, kind: type) -> str:
    """The name under which a class is registered, or the class's own."""
    return next((name for name, one in registry.items() if one is kind), kind.__name__)


def either(names, word: str = "or") -> str:
    """"a", "a or b", "a, b or c"."""
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last


# -- options that come from a yaml file ----------------------------------------------------------------------------------

def as_namespace(kind: type, args) -> Namespace:
    """A model's options as argparse makes them of flags.

    ``fairseq-hydra-train`` hands over what the yaml file says and the architecture filled in; ``TransformerConfig`` loses
    options that it does not know when they come in an OmegaConf container, and nothing there checks a name or a choice.

    Args:
        kind: the model's class. args: of flags, which are returned as they are, or of a yaml file.

    Raises:
        ValueError: the model has no such option, or the option no such value.
    """
    if not OmegaConf.is_config(args):
        return args
    given = OmegaConf.to_container(args, resolve=True)
    arch = model_name(args)
    parser = ArgumentParser(argument_default=SUPPRESS, add_help=False)
    kind.add_args(parser)
    flags = {action.dest: action for action in parser._actions}

    def filled(but: str = "") -> dict:
        """The options with what the architecture makes of them; without one of those given."""
        options = Namespace(**{key: value for key, value in given.items() if key != but})
        ARCH_CONFIG_REGISTRY[arch](options)
        return vars(options)

    for name, value in given.items():
        flag = flags.get(name)
        if flag is None:
            if name not in filled(but=name) and name not in ("_name", "arch", "min_params_to_wrap"):
                raise ValueError(f"model.{name}: --arch {arch} has no such option")
        elif value is not None and flag.choices and value not in flag.choices and value != filled(but=name).get(name):
            raise ValueError(f"model.{name}: {value}: choose {either(list(map(str, flag.choices)))}")
        elif flag.nargs == 0 and value is not None and not isinstance(value, bool):
            raise ValueError(f"model.{name}: {value}: choose true or false")
        elif flag.type in (int, float) and value is not None:
            try:
                given[name] = flag.type(value)
            except (TypeError, ValueError):
                raise ValueError(f"model.{name}: {value} is no {flag.type.__name__}") from None
    return Namespace(**{**given, "arch": arch})
