"""Errors of any kind as one line for a user."""


def in_one_line(error: BaseException) -> str:
    """The message of an error on one line; the type is prepended unless it is a ValueError, written for users."""
    message = " ".join(str(error).split())
    return message if isinstance(error, ValueError) and message else f"{type(error).__name__}: {message}"
