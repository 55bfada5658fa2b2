"""The benchmark: pairs of us and a peer, measured alternately in one run. How to read it: README.md."""
