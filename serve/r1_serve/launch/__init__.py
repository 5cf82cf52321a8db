"""Starting a deployment: what the ``r1`` command does.

Read in this order: ``rehearse.py`` (the whole on one machine), ``preflight.py`` (what would go wrong, named before it
does), ``processes.py`` (children that never outlive us), ``fleet.py`` (Ray and the ranks, one of those children),
``ask.py`` (one question over HTTP) and ``show.py`` (what is printed).
"""
