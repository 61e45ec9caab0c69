"""Small services below every other package: files, locks, signals, random streams, provenance. Imports no torch."""
