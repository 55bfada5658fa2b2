"""The service: one process that sees to it that every unfinished restore of this machine has an agent.

    look into the state directory --> a child ``resume`` for each restore without an agent --> READY when all are guarded
    a child dies or hangs --> a new one;  keepers die, too --> new ones from the descriptors that we and systemd hold

It restores nothing itself and holds no lock, so it can end and start at any time: keepers go on holding tasks.

Not guaranteed: a restore that a user has interrupted is left alone until the service (or the machine) starts again.
"""
