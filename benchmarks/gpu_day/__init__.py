"""Minutes on a GPU: `python -m benchmarks.gpu_day [--out FOLDER] [--seconds S] [--stage NAME ...] [--rehearse]`.

stages.py lists what is done, in what order and how long it may take; driver.py runs every stage in a process of its own, so
that one which hangs, traps or raises ends alone; child.py is that process; table.py prints the end. Every number is in
FOLDER/raw.jsonl, one JSON object a line, from the moment it is known. Nothing is built here, no setting of a GPU is
touched, and torch, numpy and triton are all that is needed.
"""
