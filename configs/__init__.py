"""Experiments: one small file each, `get_config(arg) -> ConfigDict`; base.py holds every field."""
