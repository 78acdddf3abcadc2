"""One folder or file a method: the registered model, its flags, its architectures, and what it alone is made of."""

from nar_plugins.models import bang, blockwise, cmlm, dag, nat  # noqa: F401
