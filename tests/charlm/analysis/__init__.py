"""Tests of fastlstm/charlm/analysis."""
