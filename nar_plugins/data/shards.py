"""The shards of a generation: ``fairseq-generate --num-shards N --shard-id I`` run N times, and their outputs as one.

Under ``nar_translation`` the output of each begins with a line that names the shard and its data.
"""

import re
from typing import Dict, List, NamedTuple, Optional

from nar_plugins.data.generated import FIELDS_BEFORE_TEXT, cut_off

SENTENCE_LINE = re.compile(r"([A-Z])-(\d+)(?:_\d+)?\t")  # S- to P-; E-7_0 is an iteration of sentence 7
ALWAYS = "STHDP"  # the kinds of lines that all sentences of an output have, or none


class Shard(NamedTuple):
    """One of the parts of a split, with what tells the split from others."""

    number: int  # from 0
    shards: int
    split: str  # "test src-tgt"
    sentences: int  # of the split, not of the shard
    source_tokens: int
    target_tokens: int

    def line(self) -> str:
        return (
            f"Shard {self.number} of {self.shards}: {self.split}, {self.sentences} sentences, "
            f"{self.source_tokens} source and {self.target_tokens} target tokens"
        )

    def data(self) -> str:
        """The data, without the number."""
        return self._replace(number=0).line().split(" ", 2)[2]


SHARD_LINE = re.compile(r"Shard (\d+) of (\d+): (.*), (\d+) sentences, (\d+) source and (\d+) target tokens")


def shard_of(lines: List[str]) -> Optional[Shard]:
    """The shard that an output says it is; None: it does not say."""
    for line in lines:
        match = SHARD_LINE.fullmatch(line)
        if match:
            number, shards, split, *counts = match.groups()
            return Shard(int(number), int(shards), split, *map(int, counts))
    return None


def merge(outputs: Dict[str, List[str]], sentences: Optional[int] = None) -> List[str]:
    """The lines of all sentences, in the order of their numbers; logs and the shards' own BLEU are left out.

    Args:
        outputs: name of a file -> its lines.
        sentences: the number of sentences of the split; None: as the outputs say.

    Raises:
        ValueError: the outputs are of different data, or a shard or a sentence is missing, incomplete or there twice.
    """
    expected = sentences_of(outputs, sentences)
    blocks: Dict[int, List[str]] = {}
    origins: Dict[int, str] = {}
    for name, lines in outputs.items():
        own = blocks_of(name, lines)
        twice = sorted(own.keys() & blocks.keys())
        if twice:
            others = ", ".join(dict.fromkeys(origins[number] for number in twice))
            raise ValueError(f"{name} and {others} have the same sentences: {shortened(twice)}")
        blocks.update(own)
        origins.update(dict.fromkeys(own, name))
    missing = [number for number in range(expected) if number not in blocks]
    if missing:
        raise ValueError(f"{len(missing)} of {expected} sentences are missing: {shortened(missing)}")
    if len(blocks) > expected:
        number = max(blocks)
        raise ValueError(f"{origins[number]} has sentence {number}, but there are {expected} sentences, from 0")
    check_complete(blocks, origins)
    return [line for number in sorted(blocks) for line in blocks[number]]


def sentences_of(outputs: Dict[str, List[str]], given: Optional[int]) -> int:
    """The number of sentences of the split; the shards are checked where the outputs name them."""
    shards = {name: shard_of(lines) for name, lines in outputs.items()}
    unnamed = [name for name, shard in shards.items() if shard is None]
    if unnamed:
        if given is None:
            raise ValueError(f"{unnamed[0]} does not say which shard of which data it is: give --sentences N")
        return given
    first, wanted = next(iter(shards.items()))
    seen: Dict[int, str] = {}
    for name, shard in shards.items():
        if shard.data() != wanted.data():
            raise ValueError(f"different data: {first} is {wanted.data()}; {name} is {shard.data()}")
        if shard.number in seen:
            raise ValueError(f"{seen[shard.number]} and {name} are both shard {shard.number} of {shard.shards}")
        seen[shard.number] = name
    missing = [number for number in range(wanted.shards) if number not in seen]
    if missing:
        raise ValueError(f"of {wanted.shards} shards these are missing: {shortened(missing)}")
    if given not in (None, wanted.sentences):
        raise ValueError(f"--sentences {given}: {first} says that there are {wanted.sentences}")
    return wanted.sentences


def blocks_of(name: str, lines: List[str]) -> Dict[int, List[str]]:
    """Number of the sentence -> its lines; raises when an output has a sentence twice, or half a line."""
    blocks: Dict[int, List[str]] = {}
    for line_number, line in enumerate(lines, 1):
        match = SENTENCE_LINE.match(line)
        if match:
            kind, number = match[1], int(match[2])
            if line.count("\t") < FIELDS_BEFORE_TEXT.get(kind, 1):
                raise cut_off(name, line_number, line)
            block = blocks.setdefault(number, [])
            if kind == "S" and any(other.startswith("S-") for other in block):
                raise ValueError(f"{name} has sentence {number} twice")
            block.append(line)
    return blocks


def check_complete(blocks: Dict[int, List[str]], origins: Dict[int, str]) -> None:
    """Raise when a sentence lacks a kind of lines that others have: a run that was stopped leaves such a last one."""
    kinds = {number: {line[0] for line in block} & set(ALWAYS) for number, block in blocks.items()}
    wanted = set().union(*kinds.values())
    for number, found in kinds.items():
        if found != wanted:
            lacking = ", ".join(f"{kind}-" for kind in ALWAYS if kind in wanted - found)
            raise ValueError(f"{origins[number]} is incomplete: sentence {number} has no line {lacking}")


def shortened(numbers: List[int]) -> str:
    """The first of many numbers."""
    return ", ".join(map(str, numbers[:5])) + f" and {len(numbers) - 5} more" * (len(numbers) > 5)
