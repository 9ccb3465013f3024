"""Measures candidate first stages on a sample and recommends one."""
