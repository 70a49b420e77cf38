"""Asks the server for predictions through its Service and fails unless each has a score between 0 and 1 and a
decision.
"""

import json
import os
import time
import urllib.error
import urllib.request

model, server = os.environ["MODEL"], os.environ["SERVER"]
headers = {"Content-Type": "application/json"}
if os.environ.get("TOKEN"):
    headers["Authorization"] = f"Bearer {os.environ['TOKEN']}"


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    for patience in range(15, -1, -1):  # a new pod's network rules take a second
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{server}{path}", data, headers), timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{path}: HTTP {error.code} {error.read(500).decode()}") from None
        except OSError:
            if not patience:
                raise
            time.sleep(1)


known = ask(f"/v2/models/{model}")
rows = json.loads(os.environ.get("ROWS") or "{}")
if not rows:  # any legal row: what counts is that it is answered
    rows = {each["name"]: [0.0] if each["datatype"] == "FP32" else ["unknown"] for each in known["inputs"]}
kinds = {each["name"]: each["datatype"] for each in known["inputs"]}
inputs = [
    {"name": name, "datatype": kinds.get(name, "BYTES"), "shape": [len(values)], "data": values}
    for name, values in rows.items()
]
answer = ask(f"/v2/models/{model}/infer", {"inputs": inputs})
found = {each["name"]: each["data"] for each in answer["outputs"]}
assert len(found["score"]) == len(found["decision"]) == len(next(iter(rows.values()))), found
assert all(0 <= score <= 1 for score in found["score"]), found
print(f"version {answer.get('model_version')} answered {answer['id']}: {found}")
