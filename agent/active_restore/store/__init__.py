"""Object stores that are only read: a folder on disk, S3, a REST server.

A store hands out whole objects, byte ranges and listings by name; it knows nothing of what the bytes mean. Retrying is a
wrapper over the same interface. Nothing is cached and nothing is verified here: both belong to those who know the format.
"""
