"""How a pod job is started: manifests and commands as plain data, rendered by launch/submit.py."""
