"""Writes every measured number of the pages from the files in results/ that hold it.

    python -m docs.claims            # says which pages differ from the files
    python -m docs.claims --write    # writes the numbers, and docs/measured.md

A claim is a table, which is written whole, or a sentence with places for numbers. The modules hold
the claims of one subject each: `accuracy`, `packed`, `training`, `accelerators`.
"""
