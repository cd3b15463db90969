"""The modules that users call, and what stands around a call: `call.py` turns one into a `Call` and routes it."""
