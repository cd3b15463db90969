"""Tests of fastlstm/charlm/page."""
