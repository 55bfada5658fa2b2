"""Relax mode: while no restore runs, what is opened first is noted, so that the backup carries the order of the next restore,
and what changes is known, so that a backup need not look at everything.

``daemon`` is the loop, ``watched`` one directory, ``changes`` what has changed there, ``asking`` how that is asked for. Nobody
waits for us, and a directory may come and go.

Not guaranteed: anything about what happened before it was started, or while a directory's file system was not mounted; who
asks for changes since such a moment is told so.
"""
