"""`@singleton`: a function that runs on the leading worker, turn after turn.

In the order of reading: registry, turns -> isolated, child -> crew -> decorator.
"""
