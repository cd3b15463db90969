"""Sampling of text from a model, and what samples are checked for: novelty and syntax."""
