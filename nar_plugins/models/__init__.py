"""One file a method: the registered model, its flags and its architectures."""

from nar_plugins.models import bang, blockwise, cmlm, nat  # noqa: F401
