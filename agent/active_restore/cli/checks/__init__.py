"""What a restore needs of this machine, found out by trying it, not by version numbers."""
