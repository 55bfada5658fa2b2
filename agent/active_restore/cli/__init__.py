"""The command line: parses, calls the layer below, prints, and turns every error into one line, a hint and an exit code.

Nothing here holds up a restore: what is told goes through a bounded queue to a thread that prints, and a reader that is
slow, stopped or gone loses lines but delays nobody.
"""
