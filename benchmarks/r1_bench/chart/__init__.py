"""The Helm chart, checked: rendered with Helm's own engine, validated against Kubernetes' and KubeRay's schemas, held
against the policies it promises. ``make chart-check``.

``values.py`` is the values' schema (``generate.py`` writes it), ``render.py`` the engine, ``validate.py`` the schemas,
``policy.py`` the promises, ``matrix.py`` what is rendered, ``check.py`` the command.
"""
