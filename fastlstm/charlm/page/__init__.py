"""The HTML page of `fastlstm visualize`: its data and its templates."""
