"""The engine that converts weights: safetensors, name tables, layouts and streaming. It knows no family."""
