"""Prefect's server for one run, answering on a socket that is open already.

Run by its path with the number of the socket, as dvc_process.py is.
"""

import gc
import socket
import sys

if __name__ == "__main__":
    gc.set_threshold(100_000, 50, 50)  # importing makes many objects that stay
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(ephemeral=True, final=True)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    server.run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
