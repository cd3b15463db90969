"""Tests of fastlstm/charlm/commands."""
