"""The index families and what each must do (`family.py`); `registry.py` lists them."""
