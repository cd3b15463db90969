"""Tests of the character-model tool, laid out as fastlstm/charlm is."""
