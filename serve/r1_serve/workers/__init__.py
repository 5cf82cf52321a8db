"""Workers: a Ray Serve application of vLLM ranks that attach to the routers and take token ids from them.

Read in this order: ``application.py`` (a Plan becomes deployments), ``rank.py`` (one replica), ``gang.py`` (who is in
it), ``engine.py`` (its vLLM engine), ``generations.py`` (an engine step becomes frames), ``attachment.py`` (the stream
to each router).
"""
