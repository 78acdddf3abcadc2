"""nar-user-dir: print the folder of the installed package, for `fairseq-train --user-dir "$(nar-user-dir)"`.

It takes no arguments, and prints nothing but the folder.
"""

import argparse
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog="nar-user-dir", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def main(argv=None):
    build_parser().parse_args(argv)
    # This file is in the package, in a checkout and in an installed wheel, so that nothing need be imported. The shell
    # substitutes the output: nothing but the path may be printed.
    print(Path(__file__).resolve().parents[1])


if __name__ == "__main__":
    main()
