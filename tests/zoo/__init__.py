"""The zoo: many architectures, compressed, saved, exported by the command line, compared with the module.

`python -m tests.zoo` runs all of them, `python -m tests.zoo bert dlrm` only these. Nothing here uses the
project's proof: compare.py is a second opinion, which has to agree with it.
"""
