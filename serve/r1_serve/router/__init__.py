"""The router: requests come in over HTTP or gRPC, worker ranks attach from the other side.

Follow one request: ``http/chat.py`` or ``north.py`` reads it, ``validate.py`` checks it, ``service.py`` opens a
``Call``, ``prompt.py`` makes token ids, a policy of ``r1_cluster.routing`` picks a rank, ``generation.py`` submits to
it. Each engine step of a rank arrives in ``fleet.py`` as one frame; ``ranks.py`` hands out its deltas, ``choice.py``
turns ids into thinking and answer, ``call.py`` passes them to the client's side or keeps them until it reads. When a
rank is lost ``migrations.py`` finds another; ``limits.py`` says when a thought has to be closed.
"""
