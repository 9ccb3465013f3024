"""What all packages share: types, errors, protocols, artifacts, text analysis, evaluation.

Imports no other package of Chamfer.
"""
