"""Commands: each a thin absl main over world_model and data_pipelines."""
