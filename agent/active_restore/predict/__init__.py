"""Know what is needed next, and have it there before it is asked for.

A task was served -> what kind of file was that, what will its program open next? -> those files, before the rest.
Binaries bring interpreter and libraries, scripts their interpreter, several files of one directory their siblings; a
recorded order of accesses, carried by the backup itself, goes before all guesses.

Not guaranteed: that a guess is right. Each is counted, and a kind of guess that is wrong too often may guess less. Nothing
here ever holds up a task: looking into files is done by a process of its own, after the task was let go on.
"""
