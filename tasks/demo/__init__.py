"""A small real project and its snapshots, for newcomers to watch (``make demo``) and to copy from.

``project/``, ``shop/`` and ``archive/`` are the project; ``surroundings.py`` says where it lives, ``programs.py``
starts its worker and beat, ``story.py`` is what ``make demo`` shows and ``serve.py`` what ``make serve`` runs;
``fingerprint.py`` proves, ``telling.py`` prints.
"""
