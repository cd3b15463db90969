"""Tests of fastlstm/charlm/data."""
