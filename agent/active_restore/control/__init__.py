"""How other processes talk to a running restore: a Unix socket, one JSON request and one JSON answer per line.

The agent serves its ``Commands``; a client finds the socket through the registry of restores in the state directory.
Only root can connect. Several clients may be connected at once; none of them can hold up the restore.

Not guaranteed: that an agent runs for a restore that the registry knows. Then the phase in the registry is all there is.
"""
