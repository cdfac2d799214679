"""Rounds of restores with one fault each, at a named phase of the switch or at a random moment.

``make faults`` plays long ones, ``tests/faults/test_restore_rounds.py`` a short one. A session (``session.py``) is a
process of its own: one engine with a private server whose writes are durable, a project whose journal lies in the very
database that is restored or in another one, two workers, and a client that inserts rows and remembers its commits.

In each round the database holds A' (a snapshot's content A, changed since). A worker restores A, and something dies or
sleeps. When the sweeps are done, the target has to be A or A', as the run says, and no commit of the client may be
lost. Everything is drawn from a seed, so a round can be had again.
"""
