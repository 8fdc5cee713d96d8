"""Meta-World (package metaworld, MuJoCo): a Sawyer arm at a table; scripted experts make the data (extra: sim)."""
