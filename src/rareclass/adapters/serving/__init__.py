"""The inference server for a registered version: Open Inference Protocol over HTTP and gRPC.

What it scores with and logs to is handed in by ``services.serve`` (``interfaces``). ``v2_codec`` and ``signature`` turn
a request into a checked matrix, ``engine`` scores and logs it, ``http`` and ``grpc_server`` carry it, ``shadow`` scores
it again with other versions in a process of its own, ``server`` puts them together.
"""
