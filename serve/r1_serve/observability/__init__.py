"""What a person watches: Grafana dashboards, made from Python and committed as JSON (``make observability``).

``panels.py`` is Grafana's format, ``dashboards.py`` what is shown, ``__main__.py`` writes the files. Prometheus' rules
are written by hand in deploy/prometheus/rules.yaml.
"""
