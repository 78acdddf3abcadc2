"""The building blocks of the models. Nothing here depends on a task, a dictionary or a command line."""
