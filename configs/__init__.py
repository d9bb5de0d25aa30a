"""Presets: each module has `get_config() -> ExperimentConfig`."""
