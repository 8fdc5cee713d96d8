"""Arms at tables by MuJoCo: packages metaworld and ogbench, whose scripted experts make the data (extra: sim)."""
