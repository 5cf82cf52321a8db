"""``r1 plan``: the planner of ``r1_cluster.planner`` for people and for machines.

``command.py`` reads the options, ``show.py`` prints what was found, ``emit.py`` writes it for Helm, vLLM and SGLang.
"""
