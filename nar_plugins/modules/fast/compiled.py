"""``--compile``: an encoder's layers, and a decoder's over a canvas, each as one function for torch.compile.

A graph serves any sizes, so that a run needs few: to PyTorch a dimension of 1 is a case of its own, and so is one
canvas a sentence. Lengths are therefore at least 2, and masks are always given. On a GPU every graph is recorded as a
CUDA graph for the sizes that it meets; there sentences and lengths are padded to few sizes. What is padded is masked or
cut off, so that no sentence's output depends on it.
"""

import importlib.util
import logging
import os
import shutil
import sys
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nar_plugins.modules.fast.linear import PreparedLinear
from nar_plugins.modules.layers import through_decoder, through_encoder
from nar_plugins.modules.memory import Memory

logger = logging.getLogger(__name__)

GRAPHS = 64  # of a function, for all models of a process; one needs two of its encoder, at most eight of its decoder


class Sizes(NamedTuple):
    """The sizes that a batch is padded to."""

    sentences: Callable[[int], int]
    tokens: Callable[[int], int]


def few_tokens(count: int) -> int:
    """The next multiple of 8; above 64 of an eighth of the next power of two: eight sizes from there to its double."""
    step = max(8, (1 << (count - 1).bit_length()) // 8)
    return -(-count // step) * step


EXACT = Sizes(lambda count: count, lambda count: max(2, count))
FEW = Sizes(lambda count: 1 << (count - 1).bit_length(), few_tokens)


class CompiledFunction:
    """A function of some layers and of tensors, compiled for the device that it is called on.

    Args:
        function: (layers, tensors and lists of them) -> tensors.
        layers: without hooks of a user's.
        backend: torch.compile's. sizes: None: those of the device.
    """

    name = "function"

    def __init__(self, function: Callable, layers: Sequence[nn.Module], backend="inductor", sizes=None):
        self.function, self.layers, self.backend, self.given = function, list(layers), backend, sizes
        self.compiled: Dict[str, Callable] = {}  # by the type of the device

    def sizes(self, device: torch.device) -> Sizes:
        """Those that batches on a device are padded to."""
        return self.given or (FEW if device.type == "cuda" else EXACT)

    def __call__(self, device: torch.device, *inputs) -> List[Tensor]:
        """What the function returns.

        Raises:
            ValueError: a layer has a hook of a user's, there is no compiler, or it fails.
        """
        refuse_hooks(self.layers)
        if device.type not in self.compiled:
            self.compiled[device.type] = self.compile(device)
        if device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        outputs = self.in_one_line(self.compiled[device.type], inputs)
        # the next recording would overwrite them
        return [output.clone() for output in outputs] if device.type == "cuda" else outputs

    def in_one_line(self, compiled: Callable, inputs: tuple) -> List[Tensor]:
        """What the compiled function returns, with errors of one line."""
        import torch._dynamo as dynamo  # not above: it takes seconds, and few runs compile
        import torch.fx.experimental._config as symbolic

        enough = dynamo.config.patch(recompile_limit=GRAPHS, fail_on_recompile_limit_hit=True)
        # else dimensions that are equal in the first batch are taken for one
        with enough, symbolic.patch(use_duck_shape=False):
            try:
                return compiled(self.layers, *inputs)
            except (dynamo.exc.TorchDynamoException, dynamo.exc.FailOnRecompileLimitHit) as error:
                reason = str(error).strip().split("\n")[0]
                raise ValueError(f"--compile: PyTorch could not compile the layers ({reason}): leave it out") from error

    def compile(self, device: torch.device) -> Callable:
        """The function, which is compiled in its calls."""
        refuse_compiling(device)
        logger.info(f"--compile: the {self.name} is compiled for this {device.type} in the first batches, some minutes")
        mode = "reduce-overhead" if device.type == "cuda" and self.backend == "inductor" else None
        return torch.compile(self.function, fullgraph=True, dynamic=True, backend=self.backend, mode=mode)


class CompiledEncoder(CompiledFunction):
    """The layers of an encoder."""

    name = "encoder"

    def __init__(self, encoder, **settings):
        super().__init__(encoder_states, encoder.layers.children(), **settings)

    def states(self, x: Tensor, padding: Optional[Tensor]) -> List[Tensor]:
        """``through_encoder`` of states (S, B, D) and padding (B, S): x and every layer's output."""
        length, sentences, dim = x.shape
        sizes = self.sizes(x.device)
        rows, width = sizes.sentences(sentences), sizes.tokens(length)
        hidden = grown(false(x, sentences, length) if padding is None else padding, (sentences, width), True)
        inputs = grown(x.transpose(0, 1).contiguous(), (rows, width, dim)), grown(hidden, (rows, width))
        states = self(x.device, *inputs)
        return [x, *(state[:sentences, :length].transpose(0, 1) for state in states)]


class CompiledDecoder(CompiledFunction):
    """The layers of a decoder over canvases."""

    name = "decoder"

    def __init__(self, decoder, **settings):
        super().__init__(decoder_features, decoder.layers, **settings)
        self.allowed_positions = decoder.allowed_positions

    def features(
        self, x: Tensor, memory: Memory, padding: Optional[Tensor], picked: Optional[Tensor], extra: Dict
    ) -> Tensor:
        """``NarDecoder.through_layers`` without what follows the layers: (R, T, D) -> (R, T or n, D)."""
        (rows, width, dim), sizes = x.shape, self.sizes(x.device)
        sentences, heads, source, part = memory.keys[0].shape
        batch, tokens, sources = sizes.sentences(sentences), sizes.tokens(width), sizes.tokens(source)
        canvases = rows // sentences * batch

        hidden = grown(false(x, rows, width) if padding is None else padding, (rows, tokens), True)
        hidden = grown(hidden, (canvases, tokens))
        seen = ~false(x, sentences, 1, 1, source) if memory.allowed is None else memory.allowed
        seen = grown(grown(seen, (sentences, 1, 1, sources)), (batch, 1, 1, sources), True)
        keys, values = (
            [grown(each, (batch, heads, sources, part)) for each in parts] for parts in (memory.keys, memory.values)
        )
        states = grown(x, (canvases, tokens, dim))
        extra = {
            name: grown(value, (canvases, tokens, dim)) if isinstance(value, Tensor) else value
            for name, value in extra.items()
        }
        some = None if picked is None else grown(picked.contiguous(), (canvases, sizes.tokens(picked.size(1))))
        allowed = self.allowed_positions(hidden, states)
        (features,) = self(x.device, states, keys, values, seen, allowed, some, extra)
        return features[:rows, : width if picked is None else picked.size(1)]


def encoder_states(layers, x: Tensor, padding: Tensor) -> List[Tensor]:
    """The output (B, S, D) of every layer, for states (B, S, D)."""
    states = through_encoder(layers, x.transpose(0, 1), padding)
    return [state.transpose(0, 1) for state in states[1:]]


def decoder_features(layers, x: Tensor, keys, values, seen: Tensor, allowed: Tensor, picked, extra: Dict) -> List:
    """``through_decoder``, in a list."""
    return [through_decoder(layers, x, Memory(keys, values, seen, {}), allowed, picked, **extra)]


def grown(x: Tensor, sizes: Sequence[int], value=0) -> Tensor:
    """A tensor, padded behind every dimension to these sizes; itself where it has them."""
    if tuple(x.shape) == tuple(sizes):
        return x
    more = [pair for old, new in zip(reversed(x.shape), reversed(sizes)) for pair in (0, new - old)]
    return F.pad(x, more, value=value)


def false(like: Tensor, *sizes: int) -> Tensor:
    """False of these sizes, on the device of a tensor."""
    return torch.zeros(sizes, dtype=torch.bool, device=like.device)


def compile_layers(model: nn.Module, **settings) -> None:
    """Let a prepared model compute its layers compiled.

    Args:
        settings: of ``CompiledFunction``.

    Raises:
        ValueError: the model's encoder or decoder has no layers of this package's, or there is no compiler.
    """
    encoder, decoder = getattr(model, "encoder", None), getattr(model, "decoder", None)
    if not all(hasattr(side, "compiled") for side in (encoder, decoder)):
        raise ValueError(f"--compile: a {type(model).__name__} has no layers that it could compile: leave it out")
    refuse_compiling(next(model.parameters()).device)
    for side, kind in ((encoder, CompiledEncoder), (decoder, CompiledDecoder)):
        side.compiled = kind(side, **settings)
        for layer in side.layers.modules():
            if type(layer) is PreparedLinear:
                layer.plain = True


def refuse_hooks(layers: Sequence[nn.Module]) -> None:
    """Raise where a layer has a hook of a user's, which a compiled function would leave out."""
    for layer in layers:
        for module in layer.modules():
            if module._forward_hooks or module._forward_pre_hooks:
                raise ValueError(
                    f"--compile: a {type(module).__name__} has a hook, which would not be called: remove the hook or "
                    "leave --compile out"
                )


def refuse_compiling(device: torch.device) -> None:
    """Raise where torch.compile has no compiler."""
    reason = compiler_lacks(device)
    if reason is not None:
        raise ValueError(f"--compile: {reason}; or leave --compile out")


def compiler_lacks(device: torch.device) -> Optional[str]:
    """What is missing for torch.compile on a device, and what to do; None: nothing."""
    if device.type == "cuda":
        lacks = importlib.util.find_spec("triton") is None
        return "this PyTorch has no triton, which compiles for GPUs: pip install triton" if lacks else None
    if device.type != "cpu":
        return f"it is for CPUs and NVIDIA's GPUs, and this is {device.type}: decode on one of them"
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    return f"no C++ compiler {compiler} is found: install one or name it in CXX" if not shutil.which(compiler) else None
