"""Mutation test of the proof: exported files are changed in one place, and the proof must refuse them.

`make mutants` runs all models; test_mutants.py has a small part.
"""
