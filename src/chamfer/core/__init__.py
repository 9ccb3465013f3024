"""The words of Chamfer: types, errors, protocols, artifacts, text analysis, evaluation. Imports nothing of the
project.
"""
