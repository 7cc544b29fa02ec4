"""llama.cpp's own server, over one GGUF file.

    python -m tests.llamacpp_server FILE PORT NAME

One request at a time, without reuse of what it has computed: the same request gives the same reply.
"""

import sys
import threading

import xllamacpp


def main(file: str, port: int, name: str) -> None:
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.model_alias = {name}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 512, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_prompt, params.warmup, params.use_jinja = False, False, True
    params.verbosity = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
