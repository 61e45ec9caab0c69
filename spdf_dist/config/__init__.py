"""The typed config tree: schema, loading, overrides, errors. Imported by every package; imports none of them."""
