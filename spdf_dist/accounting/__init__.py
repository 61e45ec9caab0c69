"""FLOPs, parameters, memory and communication of a config, computed without torch."""
