"""One thin file for each `nar-*` command: arguments in, a call of the package."""
