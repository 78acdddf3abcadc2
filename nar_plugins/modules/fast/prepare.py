"""``prepare_for_decoding``: a model for decoding beside the user's own, with the same parameters and faster products.

The prepared model is a copy of the modules. It shares every parameter, buffer and hook with the original, also those
that are replaced, moved or added later, and nothing else. ``nn.Linear`` is replaced by ``PreparedLinear``, which packs,
casts or quantises its weight once. The original is not changed, unless ``Prepared.release`` gives its weights back.
When one of its modules is replaced, the generators that are built afterwards see it.

    prepared = prepare_for_decoding(model, "int8")
    prepared.update(torch.int8)      before every batch: quantises again what has changed
    prepared.model.encode(...)

PyTorch counts changes of a parameter, but not those of ``parameter.data``, by which fairseq's optimisers change it:
``weights_changed`` says that there were some.
"""

import logging
import math
import operator
import threading
from typing import Dict, Iterable, List, Optional, Sequence, Set
from weakref import WeakKeyDictionary

import torch
import torch.nn as nn
from fairseq.modules import MultiheadAttention
from torch import Tensor

from nar_plugins.modules.fast.choice import faster_decode_dtype
from nar_plugins.modules.fast.compiled import compile_layers
from nar_plugins.modules.fast.forms import int8_bytes
from nar_plugins.modules.fast.fused import FusedLinear, products_of
from nar_plugins.modules.fast.half_weights import half_bytes, keeps_weights_in_half
from nar_plugins.modules.fast.heap import trim_heap
from nar_plugins.modules.fast.int8 import megabytes
from nar_plugins.modules.fast.linear import PreparedLinear, refuse_given_back
from nar_plugins.modules.fast.refusals import refuse_device, refuse_int8, refuse_large, refuse_nan
from nar_plugins.modules.fast.shared_copy import own_products, replaceable, shared_copy
from nar_plugins.modules.fast.table import HalfTable, PreparedTable

logger = logging.getLogger(__name__)

NOTHING = torch.empty(0)  # in the place of a bias that is not there
VERSION = operator.attrgetter("_version")
DECODE_DTYPES = ("float32", "bfloat16", "float16", "int8", "auto")
LOCK = threading.RLock()  # two threads may ask for the same model
MADE: "WeakKeyDictionary[nn.Module, Dict[tuple, Prepared]]" = WeakKeyDictionary()  # fairseq's hub asks in every call


class Prepared:
    """A prepared model.

    Args:
        model: a copy of the original's modules (``shared_copy``), or the original where nothing is to be prepared.
        name: of ``DECODE_DTYPES``.
        structure: tells whether the original still has the modules of the copy.
        compiled: the layers are compiled (``compiled.py``).

    Attributes:
        model: the copy, in evaluation mode.
        layers: its linear layers. tables: its tables of vectors. fused: products of several layers.
        released: whether the original's weights are given back (``release``).
    """

    def __init__(self, model: nn.Module, name: str, structure: Sequence[int] = (), compiled: bool = False):
        self.name, self.structure = name, structure
        self.chosen: Dict[bool, torch.dtype] = {}  # of ``auto``, by whether float16 is a candidate
        self.model = model
        if compiled:
            compile_layers(model)
        self.model.eval()  # not chained: it returns None after fairseq's make_generation_fast_
        modules = list(self.model.modules())
        self.layers: List[PreparedLinear] = [m for m in modules if type(m) is PreparedLinear]
        self.tables: List[PreparedTable] = [
            m.table for m in modules if isinstance(getattr(m, "table", None), PreparedTable)
        ]
        self.fused: List[FusedLinear] = products_of(self.model)
        # fairseq's attentions that call PyTorch's function with their weights, and not their projections
        self.attentions = [
            m for m in self.model.modules() if type(m) is MultiheadAttention and not m.skip_embed_dim_check
        ]
        self.places = [(part, name) for part in (*self.layers, *self.tables) for name in part.names]
        self.stamp: Optional[list] = None  # the type, and what tells the parameters of all ``places`` from others
        self.released = False

    def dtype(self, device: torch.device, rows: int, float16: bool = True) -> torch.dtype:
        """The type to decode in on a device; ``auto`` is decided and logged at the first call.

        Args:
            rows: tokens of a batch, for ``auto``. float16: ``auto`` may choose it.
        """
        if self.name != "auto":
            return getattr(torch, self.name)
        if self.own_half() is not None:
            return torch.float32  # no autocast: the model is decoded in its own type
        if float16 not in self.chosen:
            chosen = self.chosen[float16] = faster_decode_dtype(device, self.model, rows, float16)
            logger.info(f"--decode-dtype auto: {chosen}, the faster one on this {device.type}".replace("torch.", ""))
        return self.chosen[float16]

    def update(self, dtype: torch.dtype) -> None:
        """Prepare the layers whose parameters are not those of the last call: replaced, moved, or changed in place."""
        stamp = self.stamp_of(dtype)
        if stamp == self.stamp:
            return
        with LOCK:
            if stamp == self.stamp:  # another thread was faster
                return
            own = self.own_half()
            if own is not None and dtype in (torch.float16, torch.bfloat16, torch.int8) and dtype != own:
                raise ValueError(
                    f"--decode-dtype {self.name}: the model is in {str(own).replace('torch.', '')} already (--fp16, or "
                    "its own half()): leave one out"
                )
            if dtype == torch.int8 and self.layers and self.layers[0].weight.dtype == torch.float64:
                raise ValueError(f"--decode-dtype {self.name}: the model is in float64: call its float() before")
            before = self.stamp if self.stamp is not None and self.stamp[0] == dtype else [None] * len(stamp)
            others = [part for (part, _), new, old in zip(self.places, stamp[1:], before[1:]) if new != old]
            changed = list(dict.fromkeys([*others, *self.tied_otherwise(dtype)]))  # a layer has two parameters
            for part in changed:
                refuse_given_back(part.weight, f"--decode-dtype {self.name}")
            if dtype == torch.float16 and self.in_float32(dtype):
                refuse_large(self.model, self.name)
            if dtype == torch.int8:
                for device in {part.weight.device for part in changed}:
                    refuse_device(device)
                refuse_nan(self.model)
            self.prepare_layers([part for part in changed if isinstance(part, PreparedLinear)], dtype)
            tied = {id(layer.weight): layer.int8 for layer in self.layers}
            for table in (part for part in changed if isinstance(part, PreparedTable)):
                table.prepare(dtype, tied.get(id(table.weight)))
                tied.setdefault(id(table.weight), table.int8)
            for attention in self.attentions:
                attention.skip_embed_dim_check = dtype != torch.float32  # True: the projections are called
            if dtype == torch.int8 and self.stamp is None:
                self.log_size()
            self.stamp = stamp

    def stamp_of(self, dtype: torch.dtype) -> list:
        """``stamp`` of the parameters of now."""
        given = [part.source[name] for part, name in self.places]
        given = [NOTHING if parameter is None else parameter for parameter in given]
        # asked before every batch, so without a call of a function of Python's for each of some hundred parameters
        return [dtype, *zip(map(id, given), map(Tensor.data_ptr, given), versions(given))]

    def prepare_layers(self, layers: List[PreparedLinear], dtype: torch.dtype) -> None:
        """Prepare layers, and the fused products that they are part of."""
        changed = {id(layer) for layer in layers}
        tables, replaced = self.looked_up(), set()
        for fused in self.fused:
            if not changed.isdisjoint(map(id, fused.layers)):
                fused.prepare(dtype)
            if fused.product is not None:
                replaced.update(map(id, fused.layers))
        for layer in layers:
            layer.prepare(dtype, later=id(layer) in replaced, looked_up=id(layer.weight) in tables)

    def tied_otherwise(self, dtype: torch.dtype) -> List[PreparedLinear]:
        """The layers in int8 whose weight has become a table's, or is one no more."""
        tables = self.looked_up() if dtype == torch.int8 else set()
        return [each for each in self.layers if each.in_int8 and each.looked_up != (id(each.weight) in tables)]

    def looked_up(self) -> Set[int]:
        """The ids of the weights whose rows are read in int8."""
        return {id(table.weight) for table in self.tables if not isinstance(table, HalfTable)}

    def release(self, keep: Iterable[nn.Module] = ()) -> None:
        """Give back the float32 weights that decoding in int8 does not read: their place takes one NaN of their shape.

        The original cannot compute any more, and nothing can be prepared of it again, so this is for a model that
        nothing but its generator reads.

        Args:
            keep: modules whose weights are read by others than their own ``forward``.

        Raises:
            ValueError: as ``update``.
        """
        trim_heap()  # of what loading has freed, before more is needed
        self.update(torch.int8)
        with LOCK:
            kept = {id(parameter) for module in keep for parameter in module.parameters()}
            for module in self.model.modules():
                names = own_products(module)
                kept.update(id(value) for name, value in module._parameters.items() if name not in names)
            empty: Dict[int, nn.Parameter] = {}
            for module in self.model.modules():
                for name, weight in module._parameters.items():
                    if weight is not None and id(weight) not in kept:
                        # on "meta" PyTorch's products would read memory that is not theirs
                        one_number = torch.full((), math.nan, dtype=weight.dtype).expand(weight.shape)
                        shared = empty.setdefault(id(weight), nn.Parameter(one_number, requires_grad=False))
                        module._parameters[name] = shared
            self.stamp, self.released = self.stamp_of(torch.int8), True
            trim_heap()

    def own_half(self) -> Optional[torch.dtype]:
        """The model's own half precision, by ``--fp16`` or ``half()``; None: it has none."""
        own = self.layers[0].weight.dtype if self.layers else None
        return own if own in (torch.float16, torch.bfloat16) else None

    def in_float32(self, dtype: torch.dtype) -> bool:
        """Whether the layers' inputs and outputs are in float32 when decoding in a type: there is no autocast."""
        in_half = bool(self.layers) and keeps_weights_in_half(self.layers[0].weight, dtype)
        return dtype == torch.float32 or in_half

    def forget(self) -> None:
        """Prepare all layers again in the next ``update``."""
        with LOCK:
            if self.stamp is not None and not self.released:
                self.stamp = [None] * len(self.stamp)

    def log_size(self) -> None:
        """Log the size of the weights in int8."""
        parameters = sum(p.numel() * p.element_size() for p in self.model.parameters())
        others = sum(p.numel() for p in self.other_parameters(torch.int8))
        logger.info(
            f"--decode-dtype int8: {len(self.layers)} linear layers in {megabytes(self.layer_bytes(torch.int8))}, "
            f"{megabytes(self.table_bytes())} of tables that are no layer's, {megabytes(4 * others)} of other weights "
            f"in float32; the model has {megabytes(parameters)}"
        )

    def weight_bytes(self) -> int:
        """The size of the weights in the type of the last batch, as a decoding reads them; a shared one counts once."""
        dtype = None if self.stamp is None else self.stamp[0]
        if dtype not in (torch.int8, torch.bfloat16, torch.float16):
            return sum(p.numel() * p.element_size() for p in self.model.parameters())
        tables = self.table_bytes() if dtype == torch.int8 else 0
        return (
            self.layer_bytes(dtype) + tables + sum(p.numel() * p.element_size() for p in self.other_parameters(dtype))
        )

    def layer_bytes(self, dtype: torch.dtype) -> int:
        """The size of the linear layers' weights and biases in int8 (biases in float32) or in half precision."""
        biases = sum(layer.bias.numel() for layer in self.layers if layer.bias is not None)
        if dtype == torch.int8:
            tables = self.looked_up()
            return sum(int8_bytes(layer.weight, id(layer.weight) in tables) for layer in self.layers) + 4 * biases
        if self.in_float32(dtype):
            return sum(half_bytes(layer.weight) for layer in self.layers) + 4 * biases
        return 2 * (sum(layer.weight.numel() for layer in self.layers) + biases)

    def table_bytes(self) -> int:
        """The size of the tables for int8; one that is also a layer's weight is stored with it."""
        layers = {id(layer.weight) for layer in self.layers}
        tables = {id(table.weight): table for table in self.tables if id(table.weight) not in layers}
        return sum(table.bytes() for table in tables.values())

    def other_parameters(self, dtype: torch.dtype) -> List[Tensor]:
        """The parameters that are read as they are when decoding in a type that is not the model's: norms, in half
        precision also tables.
        """
        prepared = {id(p) for layer in self.layers for p in (layer.weight, layer.bias)}
        tables = {id(m.weight) for m in self.model.modules() if isinstance(m, nn.Embedding)}
        if dtype == torch.int8:
            prepared |= {id(table.weight) for table in self.tables}
            tables -= prepared
        return [p for p in self.model.parameters() if id(p) not in prepared or id(p) in tables]


def prepare_for_decoding(model: nn.Module, name: str, compiled: bool = False) -> Prepared:
    """The prepared model of a model and a type; the same one in every call, while the model has the same modules.

    Args:
        model: any model of this package or of fairseq's; a prepared one is returned.
        name: of ``DECODE_DTYPES``. compiled: with compiled layers.

    Raises:
        ValueError: the model cannot be decoded in int8 or compiled here, or not be copied.
    """
    if "prepared" in vars(model):
        return vars(model)["prepared"]
    if name == "int8":
        refuse_int8(model)
    if not compiled and not any(
        replaceable(module) or hasattr(module, "products") or hasattr(module, "tables") for module in model.modules()
    ):
        return Prepared(model, name)
    with LOCK:
        made = MADE.setdefault(model, {})
        # no number is used again: the copy keeps the dictionaries
        structure = [id(module._parameters) for module in model.modules()]
        kind = (name, compiled)
        if kind not in made or made[kind].structure != structure:
            made[kind] = Prepared(shared_copy(model), name, structure, compiled)
            vars(made[kind].model)["prepared"] = made[kind]
        return made[kind]


def weights_changed() -> None:
    """Let every prepared model read its weights again: they were changed through ``parameter.data``."""
    with LOCK:
        for made in MADE.values():
            for prepared in made.values():
                prepared.forget()


def versions(parameters: Sequence[Tensor]) -> List[int]:
    """The number of changes in place of each; 0 for PyTorch's inference tensors, which do not count them."""
    try:
        return list(map(VERSION, parameters))
    except RuntimeError:
        return [0 if parameter.is_inference() else parameter._version for parameter in parameters]
