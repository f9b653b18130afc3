"""What Prometheus made of Duet's /metrics. usage: prometheus.py SERVER PROMETHEUS BOARD.json

Requests go to SERVER until each expression of the board has data in PROMETHEUS (20 s at most); then families,
types and values are compared with the page itself.
"""
import json
import sys
import threading
import time
import urllib.parse
import urllib.request

SERVER, PROMETHEUS, BOARD = sys.argv[1:4]
failures = []


def get(url):
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read().decode()


def prometheus(path, **query):
    answer = json.loads(get(f"{PROMETHEUS}/api/v1/{path}?{urllib.parse.urlencode(query)}"))
    assert answer["status"] == "success", answer
    return answer["data"]


def value(expression):
    """Of the first series, or None where there is none or it is not a number."""
    result = prometheus("query", query=expression)["result"]
    return float(result[0]["value"][1]) if result and result[0]["value"][1] != "NaN" else None


def ask(number):
    # Texts that begin alike, so that the prefix cache has hits.
    body = {"model": "kjv", "prompt": "In the beginning God created the heaven and the earth. " * 3 + str(number),
            "max_tokens": 24, "stream": True}
    request = urllib.request.Request(f"{SERVER}/v1/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def expressions(node):
    if isinstance(node, dict):
        if "expr" in node:
            yield node["expr"]
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from expressions(child)


with open(BOARD) as board:
    panels = list(expressions(json.load(board)))
panels = [p.replace("$model", "kjv").replace("$__rate_interval", "5s") for p in panels]
assert len(panels) > 10, panels
empty, deadline = panels, time.time() + 20
while empty and time.time() < deadline:
    clients = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    empty = [p for p in empty if value(p) is None]
failures += [f"no data for the panel {p}" for p in empty]

time.sleep(1)  # the last scrape saw the end of the last request
target = prometheus("targets")["activeTargets"][0]
if target["health"] != "up" or target["lastError"]:
    failures.append(f"the target is {target['health']}: {target['lastError']}")
page = get(f"{SERVER}/metrics").splitlines()
types = {line.split()[2]: line.split()[3] for line in page if line.startswith("# TYPE ")}
known = prometheus("metadata")
names = set(prometheus("label/__name__/values"))
for name, kind in types.items():
    if name not in known or known[name][0]["type"] != kind or not known[name][0]["help"]:
        failures.append(f"{name} is a {kind} here, in Prometheus {known.get(name)}")
    if name + ("_bucket" if kind == "histogram" else "") not in names:
        failures.append(f"no sample of {name}")
for name in ("vllm:generation_tokens_total", "vllm:e2e_request_latency_seconds_count", "duet:steps_total"):
    here = next(float(line.rsplit(" ", 1)[1]) for line in page if line.startswith(name + "{"))
    if value(name) != here or here == 0:
        failures.append(f"{name} is {here} here, in Prometheus {value(name)}")
for failure in failures:
    print("FAILED:", failure)
print(f"{len(types)} families, {len(panels)} panels, {len(failures)} failures")
sys.exit(1 if failures else 0)
