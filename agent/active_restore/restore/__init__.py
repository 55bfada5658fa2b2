"""The restore itself, in three steps: read a snapshot and lay its placeholders in a hidden staging directory in one pass,
reveal them, then fill them by demand and in the background until nothing is left.

Not guaranteed here: that nobody reads a placeholder. That is the interceptor's work; this package only calls functions.
"""
