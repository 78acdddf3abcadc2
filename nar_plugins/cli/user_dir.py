"""nar-user-dir: print the folder of the installed package, for `fairseq-train --user-dir "$(nar-user-dir)"`.

It takes no arguments; the folder is all that it prints.
"""

import argparse
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="nar-user-dir", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def main(argv=None):
    build_parser().parse_args(argv)
    # This file lies in the package, whether that is a checkout or an installed wheel: nothing need be imported to find
    # it. Nothing but the path may go to stdout, because a shell substitutes it.
    print(Path(__file__).resolve().parents[1])


if __name__ == "__main__":
    main()
