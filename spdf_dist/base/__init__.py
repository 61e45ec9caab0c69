"""Small services that all packages use: files, locks, signals, random streams, provenance. It imports no torch."""
