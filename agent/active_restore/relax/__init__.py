"""Relax mode: while no restore runs, what is opened first is noted, so that the backup carries the order of the next restore.

``daemon`` is the loop, ``watched`` one directory. Nobody waits for us, and a directory may come and go.

Not guaranteed: anything about what happened before it was started, or while a directory's file system was not mounted.
"""
