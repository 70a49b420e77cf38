"""Measures what a serving pod on a cluster can do and costs, and prints the sizing table of docs/kubernetes.md.

python tools/sizing.py --release flights --namespace rareclass [--price 0.04] [--requests 400]

Processor time is read from the pod's own control group before and after each series, so other work on the node
lengthens latencies and not what a request costs. The clients run in a pod of their own in the same namespace.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import textwrap
import uuid
from typing import Any

ROWS = (1, 10, 100, 1000)
CLIENTS = 4

CLIENT = """
    import http.client, json, random, threading, time
    host, model, rows, requests, clients = "{host}", "{model}", {rows}, {requests}, {clients}
    def connection():
        return http.client.HTTPConnection(host, 80, timeout=60)
    for left in range(60, -1, -1):
        try:
            asking = connection(); asking.request("GET", f"/v2/models/{{model}}"); inputs = json.load(asking.getresponse())["inputs"]; break
        except OSError:
            if not left:
                raise
            time.sleep(0.5)
    def body():
        return json.dumps(dict(inputs=[dict(name=each["name"], datatype=each["datatype"], shape=[rows], data=[random.uniform(0, 50) if each["datatype"] == "FP32" else "x" for _ in range(rows)]) for each in inputs]))
    ready, took, lock = [[body() for _ in range(8)] for _ in range(clients)], [], threading.Lock()
    def work(bodies):
        asking, mine = connection(), []
        for turn in range(requests // clients):
            begin = time.perf_counter()
            asking.request("POST", f"/v2/models/{{model}}/infer", bodies[turn % len(bodies)])
            answer = asking.getresponse(); answer.read()
            assert answer.status == 200, answer.status
            mine.append(time.perf_counter() - begin)
        with lock:
            took.extend(mine)
    begin = time.perf_counter()
    threads = [threading.Thread(target=work, args=(each,)) for each in ready]
    [each.start() for each in threads]; [each.join() for each in threads]
    seconds, took = time.perf_counter() - begin, sorted(took)
    print(json.dumps(dict(requests=len(took), seconds=seconds, p50=took[len(took) // 2], p99=took[int(len(took) * 0.99)])))
"""  # noqa: E501
USAGE = """
import os, time, urllib.request
url = "http://localhost:6000" + os.environ.get("MLSERVER_METRICS_ENDPOINT", "/metrics")
end = time.monotonic() + 120
while time.monotonic() < end:  # what was logged is shipped too
    text = urllib.request.urlopen(url).read().decode()
    if all(float(line.split()[-1]) == 0 for line in text.splitlines() if line.startswith("rareclass_serve_spool_bytes")):
        break
    time.sleep(0.5)
root = "/sys/fs/cgroup"
second = os.path.exists(f"{root}/cpu.stat")
nanos = 1000 * int(open(f"{root}/cpu.stat").read().split()[1]) if second else int(open(f"{root}/cpuacct/cpuacct.usage").read())
memory = root if second else f"{root}/memory"
used = int(open(f"{memory}/{'memory.current' if second else 'memory.usage_in_bytes'}").read())
stat = dict(line.split() for line in open(f"{memory}/memory.stat"))
print(nanos, used - int(stat["inactive_file" if second else "total_inactive_file"]))
"""  # noqa: E501


def kubectl(*words: str, given: str | None = None) -> str:
    done = subprocess.run(["kubectl", *words], input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"kubectl {' '.join(words[:4])}: {done.stderr.strip()}")
    return done.stdout


def usage(namespace: str, pod: str, container: str) -> tuple[float, int]:
    """Processor seconds since the container's start, and bytes of its working set."""
    nanos, used = kubectl("-n", namespace, "exec", pod, "-c", container, "--", "python", "-c", USAGE).split()
    return int(nanos) / 1e9, int(used)


def asked(namespace: str, image: str, script: str) -> dict[str, Any]:
    """Run the clients in a pod; return what they measured."""
    name = f"sizing-{uuid.uuid4().hex[:6]}"
    security = {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container = {
        "name": "clients",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", textwrap.dedent(script)],
        "securityContext": security,
    }
    spec = {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}
    kubectl("apply", "-f", "-", given=json.dumps(pod))
    try:
        kubectl("-n", namespace, "wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=600s")
        found: dict[str, Any] = json.loads(kubectl("-n", namespace, "logs", name))
        return found
    finally:
        kubectl("-n", namespace, "delete", "pod", name, "--wait=false", "--grace-period=0")


def table(release: str, namespace: str, price: float, requests: int) -> list[str]:
    which = f"app.kubernetes.io/instance={release},app.kubernetes.io/component=serving"
    pods = json.loads(kubectl("-n", namespace, "get", "pods", "-l", which, "-o", "json"))["items"]
    if len(pods) != 1:
        sys.exit(f"{len(pods)} pods serve {release} in {namespace}. The table is of one: kubectl scale it to 1 first")
    container = pods[0]["spec"]["containers"][0]
    name, model = pods[0]["metadata"]["name"], container["name"]
    image = container["image"]
    lines = [
        (
            "| rows per request | processor ms per request | requests/s of one core | rows/s of one core | latency "
            "p50 / "
            "p99, 4 clients | memory | cost of a million predictions |"
        ),
        "|---|---|---|---|---|---|---|",
    ]
    host = f"{release}-serving.{namespace}"
    for rows in (ROWS[0], *ROWS):  # the first one warms up
        n = max(80, requests if rows < ROWS[-1] else requests // 4)
        script = CLIENT.format(host=host, model=model, rows=rows, requests=n, clients=CLIENTS)
        before, _ = usage(namespace, name, model)
        said = asked(namespace, image, script)
        after, used = usage(namespace, name, model)
        each = (after - before) / said["requests"]
        cost = each / rows * 1e6 / 3600 * price
        lines.append(
            f"| {rows:,} | {1000 * each:.1f} | {1 / each:,.0f} | {rows / each:,.0f} | {1000 * said['p50']:.0f} / "
            f"{1000 * said['p99']:.0f} ms "
            f"| {used / 2**20:.0f} MiB | {cost:.2g} USD |"
        )
    del lines[2]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--release", default="flights")
    parser.add_argument("--namespace", default="rareclass")
    parser.add_argument("--price", type=float, default=0.04, help="USD of a core for an hour")
    parser.add_argument("--requests", type=int, default=2000, help="of each series (a quarter of it for 1,000 rows)")
    given = parser.parse_args()
    print("\n".join(table(given.release, given.namespace, given.price, given.requests)))


if __name__ == "__main__":
    main()
