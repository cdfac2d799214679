"""What a project can hear of a restore, in the process that makes it.

``pre_restore`` is sent right before the first target is switched, when everything is built and checked: a receiver
that raises stops the restore, and nothing was changed. ``post_restore`` is sent when every target holds its new state
and the journal fits; what a receiver raises then is told in the restore's report, and takes nothing back. An undo
sends both as well. Both are sent with ``sender=None``, *name* (the snapshot, or the run that is undone), *kind*
(``"restore"`` or ``"undo"``), *run* (its id, 32 hex digits) and *targets* (pairs of type and subject). A process that
brings a dead one's restore to its end sends ``post_restore`` in its place, so it may come twice.
"""

from django.dispatch import Signal

pre_restore = Signal()
post_restore = Signal()
