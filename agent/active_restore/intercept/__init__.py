"""Interceptors turn accesses to placeholders into faults and hold the tasks until somebody answers.

A fault is delivered to a callable, an answer goes back by its ticket. An interceptor never reads content and never
decides: it holds, releases and refuses. It fails closed: with the agent dead, tasks wait.

Not guaranteed: order between faults of different inodes, or that a released task is still alive.
"""
