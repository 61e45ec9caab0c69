"""The ``spdf`` command.

A sub-command is a module with three names, found through the entry-point group ``spdf.commands``:

``HELP``
    one line for the list of commands;
``configure(parser)``
    adds its arguments (and nested sub-commands) to an ``argparse.ArgumentParser``;
``run(args) -> int``
    does the work and returns the exit code. Failures raise ``spdf_dist.config.errors.SpdfError``.

Modules import nothing heavy at their top (torch, numpy, deepspeed): ``--help`` and usage errors answer at once.
"""
