"""Which models can be a teacher, a rescorer or a drafter."""

from fairseq.models import FairseqEncoderDecoderModel, FairseqIncrementalDecoder
from fairseq.models.nat import FairseqNATModel

from nar_plugins.modules.adaptive_softmax import refuse_adaptive_softmax


def has_search(kind: type) -> bool:
    """Whether fairseq's search decodes a class of models; fairseq's own models do not list generators."""
    return "beam" in getattr(kind, "generators", ("beam",))


def check_teacher(model, name: str, role: str = "teacher") -> None:
    """Raise unless a model, or a class of models, is autoregressive and its output layer returns logits.

    Args:
        name: the model's name in the message, such as its path.
        role: the role in the message: teacher or rescorer.
    """
    kind = model if isinstance(model, type) else type(model)
    causal = model is kind or isinstance(model.decoder, FairseqIncrementalDecoder)
    parallel = issubclass(kind, FairseqNATModel) or not has_search(kind)
    if not issubclass(kind, FairseqEncoderDecoderModel) or parallel or not causal:
        raise ValueError(f"{name} holds a {kind.__name__}: a {role} is an autoregressive model, such as a transformer")
    if model is not kind:
        refuse_adaptive_softmax(model, f"{name} cannot be a {role}")


def check_drafter(model, name: str) -> None:
    """Raise unless a model, or a class of models, is a non-autoregressive one of this package.

    Args:
        name: the model's name in the message, such as its path.
    """
    kind = model if isinstance(model, type) else type(model)
    if has_search(kind):
        raise ValueError(
            f"{name} holds a {kind.__name__}: a drafter is a non-autoregressive model, a cmlm, a nat or a dag"
        )
