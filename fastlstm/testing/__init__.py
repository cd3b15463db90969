"""Public: the one table of cases (`cases.py`) and the one rule of accuracy (`accuracy.py`)."""
