"""FLOPs, parameters, memory and communication of a config, by arithmetic alone. Imports ``config`` and nothing else."""
