"""From a config to objects: the only readers of configs beside the commands."""
