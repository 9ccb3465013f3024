"""The training jobs, one module each; `registry.py` lists them."""
