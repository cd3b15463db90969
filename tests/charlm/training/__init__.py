"""Tests of fastlstm/charlm/training."""
