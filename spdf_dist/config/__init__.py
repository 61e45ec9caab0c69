"""The typed config tree: schema, loading, overrides, validation and errors. It needs no torch."""
