"""The field's datasets, a builder each. Nothing is imported here: `registry.builder(NAME)` loads what it needs."""
