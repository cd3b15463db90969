"""Tests of fastlstm/charlm/sampling."""
