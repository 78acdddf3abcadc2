"""The `nar-*` commands, one thin file each: they parse arguments and call the package."""
