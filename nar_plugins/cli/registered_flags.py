"""The flags that this package registers with fairseq, read from fairseq's parsers."""

import argparse
from typing import Dict, List, NamedTuple, Optional

from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_REGISTRY

from nar_plugins.generators import registry

# the kinds of flags that each command reads
COMMANDS = {
    "train": ("task", "model", "criterion", "generator"),
    "generate": ("task", "generator", "bpe"),
    "interactive": ("task", "generator", "bpe"),
    "validate": ("task", "criterion", "generator"),
}
KINDS = tuple(dict.fromkeys(kind for kinds in COMMANDS.values() for kind in kinds))
METAVARS = {int: "N", float: "X"}


class Flag(NamedTuple):
    """A flag as it is listed."""

    names: str
    value: str  # choices or placeholder; empty for a switch
    default: str  # empty if unset
    help: str


class Section(NamedTuple):
    """The flags of one owner, or the flags that several owners share."""

    kind: str  # one of KINDS
    owners: List[str]
    flags: List[Flag]
    note: str = ""

    def title(self) -> str:
        kind = f"{self.kind}s" if len(self.owners) > 1 else self.kind
        return f"{kind} {', '.join(self.owners)}"


def ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "nar_plugins"


def names_of(kind: str) -> List[str]:
    """The names that this package registers for a kind."""
    classes = {"task": TASK_REGISTRY, "model": MODEL_REGISTRY, "generator": registry.GENERATORS}.get(kind)
    if classes is None:
        classes = REGISTRIES[kind]["registry"]
    return sorted(name for name, cls in classes.items() if ours(cls))


def actions_of(add_arguments) -> Dict[str, argparse.Action]:
    """The arguments that a function adds to a parser, by destination."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    return {action.dest: action for action in parser._actions}


def task_flags(name: str) -> List[Flag]:
    """The fields that this package adds to the task's dataclass, without the generators' options."""
    dataclass = getattr(TASK_REGISTRY[name], "__dataclass")
    defined = {field for base in dataclass.__mro__ if ours(base) for field in vars(base).get("__annotations__", ())}
    actions = actions_of(lambda parser: gen_parser_from_dataclass(parser, dataclass()))
    flags = {dest: flag(action) for dest, action in actions.items() if dest in defined - registry.option_names()}
    if "generator" in flags:  # its parser has no choices, because others may register generators
        others = [generator for generator in names_of("generator") if generator != "beam"]
        flags["generator"] = flags["generator"]._replace(value=f"{{auto,beam,{','.join(others)}}}")
    return [entry for entry in flags.values() if entry.names]  # the data folder is no flag


def model_flags(name: str, arch: Optional[str]) -> List[Flag]:
    """The flags that a model adds to those of its base class in fairseq.

    Args:
        arch: the architecture whose defaults are shown; None: all of them.
    """
    cls = MODEL_REGISTRY[name]
    inherited = actions_of(next(base for base in cls.__mro__ if not ours(base)).add_args)
    defaults = {arch_name: architecture_defaults(arch_name) for arch_name in ([arch] if arch else architectures(name))}
    flags = []
    for dest, action in actions_of(cls.add_args).items():
        if dest in inherited:
            continue
        archs_by_value = {}
        for arch_name, values in defaults.items():
            archs_by_value.setdefault(shown(values.get(dest, action.default)), []).append(arch_name)
        first, *others = archs_by_value  # the first value is that of the architecture with the model's name
        text = "; ".join([first, *(f"{value or 'unset'} in {', '.join(archs_by_value[value])}" for value in others)])
        flags.append(flag(action)._replace(default=f"unset{text}" if text.startswith(";") else text))
    return flags


def architectures(model: str) -> List[str]:
    """The architectures of a model, the one with the model's name first."""
    names = [arch for arch, cls in ARCH_MODEL_REGISTRY.items() if cls is MODEL_REGISTRY[model]]
    return sorted(names, key=lambda arch: (arch != model, arch))


def architecture_defaults(arch: str) -> Dict:
    """The model's arguments without any flag."""
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    ARCH_MODEL_REGISTRY[arch].add_args(parser)
    args = parser.parse_args([])
    ARCH_CONFIG_REGISTRY[arch](args)
    return vars(args)


def registered_flags(kind: str, name: str) -> List[Flag]:
    """The flags of a criterion, or of another class in one of fairseq's registries."""
    dataclass = getattr(REGISTRIES[kind]["registry"][name], "__dataclass")
    return [
        flag(action) for action in actions_of(lambda parser: gen_parser_from_dataclass(parser, dataclass())).values()
    ]


def generator_sections(names: List[str]) -> List[Section]:
    """The options of generators; an option that several share is listed once."""
    configs, owners, flags = registry.CONFIGS, {}, {}
    for name in sorted(set(configs) & set(names)):
        for dest, action in actions_of(lambda parser: gen_parser_from_dataclass(parser, configs[name]())).items():
            owners.setdefault(dest, []).append(name)
            flags.setdefault(dest, flag(action))
    groups = {}
    for dest, generators in owners.items():
        groups.setdefault(tuple(generators), []).append(flags[dest])
    shared_first = sorted(groups, key=lambda generators: (-len(generators), generators))
    return [Section("generator", list(generators), groups[generators]) for generators in shared_first]


def sections(command: Optional[str] = None, arch: Optional[str] = None) -> List[Section]:
    """The flags that a command reads, for one architecture or for all.

    Raises:
        ValueError: the command is unknown, or the architecture is not this package's.
    """
    if command is not None and command not in COMMANDS:
        raise ValueError(f"no command '{command}': choose {', '.join(COMMANDS)}, and then an architecture if you like")
    models = names_of("model")
    model = None
    if arch is not None:
        all_archs = [arch_name for name in models for arch_name in architectures(name)]
        if arch not in all_archs:
            raise ValueError(f"no architecture '{arch}' in this package: choose {', '.join(all_archs)}")
        model = next(name for name in models if arch in architectures(name))
    listed = []
    for kind in COMMANDS[command] if command else KINDS:
        names = names_of(kind)
        if model is not None:
            # a name that starts with a model's, such as bang_loss, serves that model only
            specific = [name for name in names if name.startswith(f"{model}_")]
            general = [name for name in names if not any(name.startswith(f"{other}_") for other in models)]
            served = {
                "model": [model],
                "generator": list(MODEL_REGISTRY[model].generators),
                "criterion": specific or general,
            }
            names = served.get(kind, specific + general)
        if command in ("generate", "interactive") and kind == "task":
            names = [name for name in names if name == "nar_translation"]  # the other tasks do not generate
        if kind == "generator":
            listed += generator_sections(names)
            continue
        for name in names:
            if kind == "model":
                note = f"architectures: {', '.join(architectures(name))}" if arch is None else ""
                listed.append(Section(kind, [name], model_flags(name, arch), note))
            else:
                listed.append(
                    Section(kind, [name], task_flags(name) if kind == "task" else registered_flags(kind, name))
                )
    return [section for section in listed if section.flags]


def flag(action: argparse.Action) -> Flag:
    """An argument as it is listed, the same in every version of Python."""
    text = (action.help or "").replace(" (default: %(default)s)", "")  # some versions append this to switches
    value = action.metavar or METAVARS.get(action.type, "TEXT")
    if action.choices:
        value = f"{{{','.join(map(str, action.choices))}}}"
    if action.nargs == 0:  # a switch
        value = ""
    return Flag(", ".join(action.option_strings), value, shown(action.default), text % vars(action))


def shown(value) -> str:
    """A default as it is typed on the command line; empty if unset."""
    if value is None or value is argparse.SUPPRESS or isinstance(value, bool):
        return "on" if value is True else "off" if value is False else ""
    return str(value)
