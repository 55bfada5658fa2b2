"""A restore told to an MQTT broker, and steered by it where that is allowed.

The engine's events go into a digest that keeps the newest of everything; a thread with an event loop of its own connects,
publishes what changed, and connects again, later and later, when that fails. Topics are in ``topics``, what is said in
``payloads``.

Not guaranteed: that anybody hears it. What happened while no broker was there is summed up, not kept one by one, and at the
end the process waits for the broker two seconds at most. The restore itself never waits for it.
"""
