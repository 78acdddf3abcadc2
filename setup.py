from pathlib import Path

from setuptools import find_packages, setup

CT2 = ["ctranslate2"]
# The PyPI release of fairseq cannot be imported on Python 3.11 and later; its fork can.
FAIRSEQ = ['fairseq-fixed==0.12.3.1; python_version >= "3.11"', 'fairseq==0.12.2; python_version < "3.11"']
DEMO = ["starlette", "uvicorn"]
ONNX = ["onnx", "onnxruntime", "onnxscript"]
PYTHONS = ["3.9", "3.10", "3.11", "3.12", "3.13"]  # that docs/install.md has a fairseq for
RECIPES = ["sacremoses", "subword-nmt"]
SERVE = ["fastapi", "uvicorn"]

setup(
    name="nar-plugins",
    version="0.1.0",
    description="Non-autoregressive text generation as a fairseq --user-dir package",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="nar_plugins authors",
    license="MIT",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: {version}" for version in PYTHONS),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    # Listed by prefix, so that tests/, examples/ and work/ never end up in a wheel.
    packages=find_packages(include=["nar_plugins", "nar_plugins.*"]),
    package_data={"nar_plugins.demo": ["page/*"]},  # nar-demo's page
    python_requires=f">={PYTHONS[0]}",  # no upper limit: that a later Python was not tried does not forbid it
    install_requires=[
        # fairseq is an extra: several distributions install the package `fairseq`, and a requirement would let pip
        # compile one of them over another that is there. This package adds to fairseq and must not replace it.
        "numpy",
        "sacrebleu",
        "safetensors",  # nar-pack's folders
        "sentencepiece",
        "torch>=2.6",
    ],
    extras_require={
        "ct2": CT2,  # rows of CTranslate2 in nar-bench and in benchmarks
        "demo": DEMO,  # nar-demo
        "dev": [
            "pytest",
            "pytest-xdist",
            "ruff",
            "httpx",
            *CT2,
            *DEMO,
            *RECIPES,
            *(f'{name}; python_version >= "3.11"' for name in ONNX),
        ],
        "fairseq": FAIRSEQ,  # where none is installed yet
        "onnx": ONNX,  # nar-export onnx, and its rows in nar-bench; onnxruntime alone runs an exported folder
        "plots": ["matplotlib"],  # nar-bench --plot and --plot-speed, nar-curves, nar-report
        "recipes": RECIPES,  # scripts/text.py, for examples/wmt14_en_de and others
        "serve": SERVE,  # examples/serve
        "qg": ["nltk", "rouge-score"],  # examples/squad_qg/score.py: METEOR and ROUGE-L
    },
    entry_points={
        "console_scripts": [
            "nar-align = nar_plugins.cli.align:main",
            "nar-average = nar_plugins.cli.average:main",
            "nar-bench = nar_plugins.cli.bench:main",
            "nar-convert = nar_plugins.cli.convert:main",
            "nar-curves = nar_plugins.cli.curves:main",
            "nar-demo = nar_plugins.cli.demo:main",
            "nar-distill = nar_plugins.cli.distill:main",
            "nar-export = nar_plugins.cli.export:main",
            "nar-flags = nar_plugins.cli.flags:main",
            "nar-merge = nar_plugins.cli.merge:main",
            "nar-pack = nar_plugins.cli.pack:main",
            "nar-prune = nar_plugins.cli.prune:main",
            "nar-report = nar_plugins.cli.report:main",
            "nar-score = nar_plugins.cli.score:main",
            "nar-user-dir = nar_plugins.cli.user_dir:main",
            "nar-wordpiece = nar_plugins.cli.wordpiece:main",
        ]
    },
    zip_safe=False,  # --user-dir needs a real folder
)
