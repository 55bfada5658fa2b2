"""What a restore was like, from the logbook that its agent kept: lanes, faults, waits, units, predictions, throttle.

Logbook lines -> ``digest`` -> one value -> text, JSON or a self-contained page.

Not guaranteed: that every fault is listed. The logbook is bounded; what it left out is counted.
"""
