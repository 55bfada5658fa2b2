"""The demonstration: a disk is lost; how long until its programs work again, restored as usual and while in use."""
