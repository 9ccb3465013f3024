"""Family `fde`: MUVERA's fixed dimensional encodings."""
