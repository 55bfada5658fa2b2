"""Thin system calls: one function per call, ``OSError`` with errno and path, no policy."""
