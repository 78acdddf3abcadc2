"""fairseq's configuration without most of Hydra's time, a quarter of a second for every command and checkpoint.

fairseq has Hydra parse about three hundred ``group.name=value``, nearly all of them defaults, and compose the groups.
Here each of them is parsed once and each choice of groups composed once; a configuration is a copy of the first one of
its choice, in which Hydra sets the values that differ. test_compositions.py holds that the outcome is the same.
"""

import copy
import functools

from fairseq.dataclass import utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

parse = functools.lru_cache(maxsize=None)(OverridesParser.create().parse_override)
plain = utils.compose
FIRST = {}  # choice of groups -> what was set in its first configuration, and that


def is_plain_value(override) -> bool:
    """No choice of a group, and no dictionary, which Hydra would merge with the one before."""
    return "." in override.key_or_group and not isinstance(override.value(), dict)


def compose(name: str, overrides: list, strict: bool):
    """What Hydra's function of this name returns."""
    try:
        given = [parse(override) for override in overrides]
        values = {override.key_or_group: override for override in given if is_plain_value(override)}
        choice = tuple(override.input_line for override in given if not is_plain_value(override))
        if choice not in FIRST or FIRST[choice][0].keys() != values.keys():
            FIRST[choice] = values, plain(name, overrides=overrides, strict=strict)
        before, config = FIRST[choice][0], copy.deepcopy(FIRST[choice][1])
        OmegaConf.set_struct(config, True)  # as Hydra sets values
        ConfigLoaderImpl._apply_overrides_to_config([v for key, v in values.items() if v != before[key]], config)
    except (HydraException, OmegaConfBaseException):
        return plain(name, overrides=overrides, strict=strict)  # which says what is wrong
    OmegaConf.set_struct(config, strict)
    return config


def remember() -> None:
    """From now on, in this process."""
    utils.compose = compose
