"""The bricks of the models. Nothing here knows a task, a dictionary or a command line."""
