"""Rounds of snapshots with one fault at a random moment each, and what has to hold afterwards.

``make faults`` runs a long one, over every pair of broker and journal database; ``tests/faults/test_rounds.py`` a short
one. Each pair is a process of its own (``session.py``) with private servers, a project on three engines, and two or
three worker processes of one slot each. Everything is drawn from a seed, so a round can be had again.
"""
