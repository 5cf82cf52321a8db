"""Ray Serve LLM with the settings the others have: ``python ray_serve_llm.py CHECKPOINT ENGINE PORT``, in an
environment of its own, where nothing else of this package is. ``ENGINE`` is vLLM's arguments as JSON.

Writes ``serving`` to its output once it serves, until SIGTERM. Direct streaming is switched on by Ray's own environment
variables.
"""

from __future__ import annotations

import json
import signal
import sys


def main(checkpoint: str, engine: str, port: int) -> None:
    import ray
    from ray import serve
    from ray.serve.llm import build_openai_app

    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=1,  # the rehearsal platform's: a CPU rank
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=128 << 20,
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        model = {
            "model_loading_config": {"model_id": "r1-nano", "model_source": checkpoint},
            "engine_kwargs": json.loads(engine),
            "deployment_config": {"num_replicas": 1, "max_ongoing_requests": 256},
            "log_engine_metrics": False,
        }
        serve.run(build_openai_app({"llm_configs": [model]}), name="llm", route_prefix="/")
        print("serving", flush=True)
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
