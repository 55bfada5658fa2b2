"""What is told about a restore, to people and to programs.

``ThreadedReporter`` takes the events of the engine and never waits; its own thread hands them to one printer: JSON lines,
plain lines, or a live display on a terminal.
"""
