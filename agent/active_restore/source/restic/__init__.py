"""Native reader of restic repositories, format versions 1 and 2 (restic ``doc/design.rst``).

Open a key with the password, load the index into one shared memory, walk trees for metadata, read blobs by range.
Everything read is authenticated (Poly1305-AES) and every blob is compared with its SHA-256 before it is handed out.
Not offered: writing, locking (a concurrent ``prune`` can take packs away: those files are refused), the S3 legacy layout.
"""
