"""The launcher's sub-commands of ``spdf``: run, status, logs, cancel."""
