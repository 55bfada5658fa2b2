"""The configuration file ``/etc/active-restore/agent.toml``: read, checked as a whole, and handed out as frozen tables.

A file that is not there means defaults. Unknown keys and bad values are errors that name the file, the key and what is
allowed. Options of the command line win; whoever reads a table applies them. Passwords are never in the file: it names
files and systemd credentials that hold them.
"""
