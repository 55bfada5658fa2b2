"""Manners: how fast the background may go, decided several times a second from what the machine does for others.

``sensor`` looks (pressure, processors, requests and latencies of each disk, demand), ``control`` decides, ``ticker``
tells the workers by the board. ``control`` is a pure function, state and load in, state and decision out, so that hours
can be simulated in a second. While nobody else uses the disk the background is free. When somebody does, it falls to its
guaranteed minimum at once, learns there how fast the disk serves them, and goes up only as far as that does not change.

Not guaranteed: that a device-mapper target shows whose request it carries; there, counts of the disk alone must do.
"""
