"""The tool's part of the command line; fastlstm/cli.py puts it together."""
