"""The op of one layer in one direction: its definition (`reference.py`), schema, gradients, checks and vmap rule."""
