"""Losses as plain functions over tensors. Each gives its formula, its source and its shapes; none knows a model.

Legend: B queries, K candidates a query (place 0 the positive, where there is one), N documents, V vocabulary.
Every function reduces to the mean over queries.
"""
