"""Losses as plain functions over tensors. Each documents its formula, source and shapes; none knows a model.

Shapes: B queries, K candidates per query (candidate 0 the positive, if there is one), N documents, V vocabulary.
Unless stated otherwise a function returns the mean over queries.
"""
