"""HTTP in and out: ``app.py`` has the routes, ``chat.py`` follows one request."""
