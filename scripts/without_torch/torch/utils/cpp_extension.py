"""Stands in for PyTorch's module while fairseq-fixed is built: its extensions of PyTorch are left out.

fairseq's ``libbase``, ``libnat`` and ``alignment_train_cpu_binding`` serve its mixture-of-experts (BASE) layers, its
Levenshtein Transformer and its monotonic attention. They take minutes to compile, and nothing here uses them.
"""

from setuptools import Extension
from setuptools.command.build_ext import build_ext


class CppExtension(Extension):
    """An extension that is not built."""


class BuildExtension(build_ext):
    """Builds the other extensions."""

    def finalize_options(self):
        kept = [extension for extension in self.distribution.ext_modules if not isinstance(extension, CppExtension)]
        self.distribution.ext_modules = kept
        super().finalize_options()
