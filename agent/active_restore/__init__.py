"""Active Restore for Linux: let a system run while its content still streams in from the backup."""

__version__ = "0.1.0"
