"""Which units remain, given their importance."""

from typing import Dict

from torch import Tensor

from nar_plugins.modules.pruned import FEED_FORWARD
from nar_plugins.pruning.importance import Key

SCOPES = ("layer", "global")


def choose(importance: Dict[Key, Tensor], heads: float, ffn: float, scope: str, multiple: int) -> Dict[Key, Tensor]:
    """The units that remain in every part: (n,) int64, ascending.

    Args:
        importance: (units,) of every part.
        heads, ffn: the shares of attention heads and of feed-forward units that are removed.
        scope: "layer": this share of every part; "global": of all parts of the kind together, the least important.
        multiple: the number of feed-forward units that remain in a layer is rounded to a multiple of it.

    Raises:
        ValueError: a part would have no unit left.
    """
    kept = {}
    for share, flag, step in ((heads, "--prune-heads", 1), (ffn, "--prune-ffn", multiple)):
        kind = {key: scores for key, scores in importance.items() if (key.part == FEED_FORWARD) == (flag[8:] == "ffn")}
        numbers = remaining(kind, share, flag, scope)
        for key, scores in kind.items():
            number = min(len(scores), max(step, round(numbers[key] / step) * step))
            kept[key] = scores.topk(number).indices.sort().values
    return kept


def remaining(importance: Dict[Key, Tensor], share: float, flag: str, scope: str) -> Dict[Key, int]:
    """How many units of every part remain."""
    if scope == "layer":
        return {key: len(scores) - removed(share, len(scores)) for key, scores in importance.items()}
    total = sum(map(len, importance.values()))
    leaves = total - removed(share, total)
    if leaves < len(importance):
        raise ValueError(
            f"{flag} {share:g} leaves {leaves} of {total} for {len(importance)} parts of layers, each of which keeps "
            "one: give a smaller share, or drop layers"
        )
    # the best of every part remains; of the others the best of all
    best = {key: int(scores.argmax()) for key, scores in importance.items()}
    others = [(float(x), key) for key, scores in importance.items() for i, x in enumerate(scores) if i != best[key]]
    others.sort(key=lambda entry: -entry[0])
    numbers = dict.fromkeys(importance, 1)
    for _, key in others[: leaves - len(importance)]:
        numbers[key] += 1
    return numbers


def removed(share: float, units: int) -> int:
    """How many of some units a share is, rounded down: below 1 it never is all of them."""
    return min(units - 1, int(round(share * units, 6)))
