"""What a person watches: Grafana dashboards, made from Python and committed as JSON (``make observability``).

``panels.py`` is Grafana's format, ``queries.py`` the PromQL the dashboards share, then a module a dashboard;
``__main__.py`` writes the files. Prometheus' rules are written by hand in deploy/prometheus/rules.yaml.
"""
