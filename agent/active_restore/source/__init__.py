"""Sources: backups that we only read.

A source lists snapshots, walks one as a stream of nodes (parents before children) and hands out readers. A reader
delivers the content of files as verified pieces. A source is untrusted input: names, sizes and counts are checked here.

Not guaranteed: that a walk is complete (damaged trees are yielded as ``Problem``), or that two readers share anything.
"""
