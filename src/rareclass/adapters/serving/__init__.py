"""MLServer runtime for a registered version: Open Inference Protocol over HTTP and gRPC.

What it scores with and logs to is handed in by ``services.serve`` (``ports``). ``wire`` and ``signature`` turn a
request into a checked matrix, ``engine`` scores and logs it, ``http`` and ``rpc`` carry it, ``shadow`` scores it again
with other versions in a process of its own, ``server`` puts them together.
"""
