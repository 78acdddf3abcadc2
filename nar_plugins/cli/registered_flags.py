"""Every flag that this package registers with fairseq, read from the parsers themselves."""

import argparse
from typing import Dict, List, NamedTuple, Optional

from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_REGISTRY

from nar_plugins.generators import registry

# which kinds of flags a command reads
COMMANDS = {
    "train": ("task", "model", "criterion", "generator"),
    "generate": ("task", "generator", "bpe"),
    "interactive": ("task", "generator", "bpe"),
    "validate": ("task", "criterion", "generator"),
}
KINDS = tuple(dict.fromkeys(kind for kinds in COMMANDS.values() for kind in kinds))
METAVARS = {int: "N", float: "X"}


class Flag(NamedTuple):
    """A flag as it is shown."""

    names: str
    value: str  # its choices or what it takes; empty for a switch
    default: str  # empty where it is unset
    help: str


class Section(NamedTuple):
    """The flags of one owner, or those that several share."""

    kind: str  # of KINDS
    owners: List[str]
    flags: List[Flag]
    note: str = ""

    def title(self) -> str:
        many = f"{self.kind}s" if len(self.owners) > 1 else self.kind
        return f"{many} {', '.join(self.owners)}"


def ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "nar_plugins"


def names_of(kind: str) -> List[str]:
    """What this package registers of a kind."""
    classes = {"task": TASK_REGISTRY, "model": MODEL_REGISTRY, "generator": registry.GENERATORS}.get(kind)
    if classes is None:
        classes = REGISTRIES[kind]["registry"]
    return sorted(name for name, cls in classes.items() if ours(cls))


def actions_of(fill) -> Dict[str, argparse.Action]:
    """The arguments that a function adds to a parser, by the name of their value."""
    parser = argparse.ArgumentParser(add_help=False)
    fill(parser)
    return {action.dest: action for action in parser._actions}


def task_flags(name: str) -> List[Flag]:
    """The fields of the task's dataclass that this package defines, without those of the generators."""
    dataclass = getattr(TASK_REGISTRY[name], "__dataclass")
    defined = {field for base in dataclass.__mro__ if ours(base) for field in vars(base).get("__annotations__", ())}
    actions = actions_of(lambda parser: gen_parser_from_dataclass(parser, dataclass()))
    flags = {dest: flag(action) for dest, action in actions.items() if dest in defined - registry.option_names()}
    if "generator" in flags:  # which has no choices, because others may be registered
        others = [one for one in names_of("generator") if one != "beam"]
        flags["generator"] = flags["generator"]._replace(value=f"{{auto,beam,{','.join(others)}}}")
    return [one for one in flags.values() if one.names]  # not the data folder


def model_flags(name: str, arch: Optional[str]) -> List[Flag]:
    """What the model adds to the flags of fairseq's model that it is.

    Args:
        arch: the architecture whose defaults are shown; None: those of all.
    """
    cls = MODEL_REGISTRY[name]
    inherited = actions_of(next(base for base in cls.__mro__ if not ours(base)).add_args)
    defaults = {one: architecture_defaults(one) for one in ([arch] if arch else architectures(name))}
    found = []
    for dest, action in actions_of(cls.add_args).items():
        if dest in inherited:
            continue
        by_value = {}
        for one, values in defaults.items():
            by_value.setdefault(shown(values.get(dest, action.default)), []).append(one)
        first, *others = by_value  # the model's own architecture has the first
        said = "; ".join([first, *(f"{value or 'unset'} in {', '.join(by_value[value])}" for value in others)])
        found.append(flag(action)._replace(default=f"unset{said}" if said.startswith(";") else said))
    return found


def architectures(model: str) -> List[str]:
    """The model's, the one of its own name first."""
    names = [arch for arch, cls in ARCH_MODEL_REGISTRY.items() if cls is MODEL_REGISTRY[model]]
    return sorted(names, key=lambda arch: (arch != model, arch))


def architecture_defaults(arch: str) -> Dict:
    """The model's arguments where no flag is given."""
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    ARCH_MODEL_REGISTRY[arch].add_args(parser)
    args = parser.parse_args([])
    ARCH_CONFIG_REGISTRY[arch](args)
    return vars(args)


def registered_flags(kind: str, name: str) -> List[Flag]:
    """Those of a criterion, or of another class in one of fairseq's registries."""
    dataclass = getattr(REGISTRIES[kind]["registry"][name], "__dataclass")
    return [
        flag(action) for action in actions_of(lambda parser: gen_parser_from_dataclass(parser, dataclass())).values()
    ]


def generator_sections(names: List[str]) -> List[Section]:
    """The options of these generators; those that several share stand once."""
    configs, owners, flags = registry.CONFIGS, {}, {}
    for name in sorted(set(configs) & set(names)):
        for dest, action in actions_of(lambda parser: gen_parser_from_dataclass(parser, configs[name]())).items():
            owners.setdefault(dest, []).append(name)
            flags.setdefault(dest, flag(action))
    groups = {}
    for dest, who in owners.items():
        groups.setdefault(tuple(who), []).append(flags[dest])
    shared_first = sorted(groups, key=lambda who: (-len(who), who))
    return [Section("generator", list(who), groups[who]) for who in shared_first]


def sections(command: Optional[str] = None, arch: Optional[str] = None) -> List[Section]:
    """What a command reads, of one architecture or of all.

    Raises:
        ValueError: there is no such command, or the architecture is not this package's.
    """
    if command is not None and command not in COMMANDS:
        raise ValueError(f"no command '{command}': choose {', '.join(COMMANDS)}, and then an architecture if you like")
    models = names_of("model")
    model = None
    if arch is not None:
        known = [a for name in models for a in architectures(name)]
        if arch not in known:
            raise ValueError(f"no architecture '{arch}' in this package: choose {', '.join(known)}")
        model = next(name for name in models if arch in architectures(name))
    found = []
    for kind in COMMANDS[command] if command else KINDS:
        names = names_of(kind)
        if model is not None:
            # what is named after a model, such as bang_loss, is that model's alone
            own = [name for name in names if name.startswith(f"{model}_")]
            free = [name for name in names if not any(name.startswith(f"{other}_") for other in models)]
            served = {"model": [model], "generator": list(MODEL_REGISTRY[model].generators), "criterion": own or free}
            names = served.get(kind, own + free)
        if command in ("generate", "interactive") and kind == "task":
            names = [name for name in names if name == "nar_translation"]  # the others have no generation
        if kind == "generator":
            found += generator_sections(names)
            continue
        for name in names:
            if kind == "model":
                note = f"architectures: {', '.join(architectures(name))}" if arch is None else ""
                found.append(Section(kind, [name], model_flags(name, arch), note))
            else:
                found.append(
                    Section(kind, [name], task_flags(name) if kind == "task" else registered_flags(kind, name))
                )
    return [section for section in found if section.flags]


def flag(action: argparse.Action) -> Flag:
    """An argument as it is shown, alike in every version of Python."""
    said = (action.help or "").replace(" (default: %(default)s)", "")  # what argparse appends to some switches
    value = action.metavar or METAVARS.get(action.type, "TEXT")
    if action.choices:
        value = f"{{{','.join(map(str, action.choices))}}}"
    if action.nargs == 0:  # a switch
        value = ""
    return Flag(", ".join(action.option_strings), value, shown(action.default), said % vars(action))


def shown(value) -> str:
    """A default as one would type it; nothing for one that is unset."""
    if value is None or value is argparse.SUPPRESS or isinstance(value, bool):
        return "on" if value is True else "off" if value is False else ""
    return str(value)
