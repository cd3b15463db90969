"""What was measured on a GPU becomes the cost model's constants and pages: `python -m tools.gpu_fit RAW... [--write]`.

RAW is what `python -m benchmarks.gpu_day` wrote. sweep.py reads its measured steps and what the model counts for each,
solve.py finds the constants by least squares, evaluation.py says how well they predict and how well the planner would pick
with them, constants.py writes them, measured.py and plots.py make docs/gpu-measured.md.
"""
