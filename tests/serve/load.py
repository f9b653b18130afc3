"""Load and abuse against a running Duet server; what it must not leave behind is read from /metrics and /proc.
usage: load.py HOST PORT PID MODEL [SECONDS]

Rounds of many requests at once with slow readers and hang-ups, large and malformed bodies, and headers that
never end, until SECONDS are over (at least one round). Then no block, connection or descriptor may be left.
"""
import json
import os
import random
import socket
import sys
import threading
import time

import metrics

HOST, PORT, PID, MODEL = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
SECONDS = float(sys.argv[5]) if len(sys.argv) > 5 else 0
REQUESTS, AT_ONCE = 1000, 256
random.seed(1)
failures = []
counts = {}
lock = threading.Lock()


def count(what):
    with lock:
        counts[what] = counts.get(what, 0) + 1


def metric(name):
    return metrics.metric(f"http://{HOST}:{PORT}", name)


def descriptors():
    return len(os.listdir(f"/proc/{PID}/fd"))


def memory_mib():
    with open(f"/proc/{PID}/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))


def connect():
    return socket.create_connection((HOST, PORT), timeout=120)


def post(path, body, close=True):
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    return (head + ("Connection: close\r\n" if close else "") + "\r\n").encode() + body


def read_all(sock, pause=0.0):
    data = b""
    while True:
        piece = sock.recv(256 if pause else 65536)
        if not piece:
            return data
        data += piece
        time.sleep(pause)


def generation(number, kind):
    body = json.dumps({"model": MODEL, "prompt": f"Chapter {number}: in the beginning", "max_tokens": 16,
                       "temperature": 1, "seed": number, "ignore_eos": True, "stream": number % 2 == 0}).encode()
    with connect() as sock:
        sock.sendall(post("/v1/completions", body))
        if kind == "hang up":
            time.sleep(random.random() * 0.5)
            return
        data = read_all(sock, 0.002 if kind == "slow" else 0)
    status = data.split(b" ", 2)[1] if data else b"none"
    if status == b"429":
        count("refused: the queue is full")
    elif status != b"200" or (number % 2 == 0 and b"data: [DONE]" not in data):
        failures.append(f"request {number} ({kind}): {data[:300]!r}")
    else:
        count(kind)


def one_of_many(numbers):
    while True:
        with lock:
            if not numbers:
                return
            number = numbers.pop()
        kind = "hang up" if number % 10 == 3 else "slow" if number % 10 == 7 else "plain"
        try:
            generation(number, kind)
        except OSError as error:
            failures.append(f"request {number}: {error}")


MALFORMED = [b"", b"{", b"[1,2", b"null", b"[]", b"\xff\xfe", b'{"prompt": }', b'{"prompt": "\xc3"}', b"[" * 100000,
             b'{"a":' * 5000, b'{"prompt": "a", "max_tokens": 1e400}', b'{"prompt": "a", "prompt": 1}', b'"' + b"\\u" * 99]


def abuse():
    for body in MALFORMED:
        with connect() as sock:
            sock.sendall(post("/v1/completions", body))
            status = read_all(sock).split(b" ", 2)[1]
            if not status.startswith(b"4"):
                failures.append(f"malformed {body[:40]!r} was answered with {status!r}")
    with connect() as sock:  # refused by its length; the server may hang up while it is still being sent
        try:
            sock.sendall(post("/v1/completions", b"x" * 30_000_000))
        except OSError:
            pass
        try:
            answer = read_all(sock)
            if b" 413 " not in answer[:40]:
                failures.append(f"30 MB: {answer[:100]!r}")
        except OSError:
            pass
    slow = [connect() for _ in range(20)]  # headers that never end
    for sock in slow:
        sock.sendall(b"GET /health HTTP/1.1\r\nX-A: ")
    deadline = time.time() + 30
    while slow and time.time() < deadline:
        time.sleep(1)
        for sock in list(slow):
            try:
                sock.sendall(b"a")
                sock.settimeout(0.01)
                if sock.recv(4096) == b"":
                    raise ConnectionError
            except TimeoutError:
                continue
            except OSError:
                slow.remove(sock)
                sock.close()
    if slow:
        failures.append(f"{len(slow)} slow-loris connections are still open after 30 s")


def run_round():
    numbers = list(range(REQUESTS))
    random.shuffle(numbers)
    threads = [threading.Thread(target=one_of_many, args=(numbers,)) for _ in range(AT_ONCE)]
    threads.append(threading.Thread(target=abuse))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def settle():
    """Nothing is left within 20 s of the last client's going."""
    for _ in range(200):
        # The connection that asks is one.
        left = {n: metric(n) for n in ("duet:kv_blocks_used", "duet:live_requests", "vllm:num_requests_running",
                                       "vllm:num_requests_waiting")}
        if not any(left.values()) and metric("duet:connections") <= 1:
            return
        time.sleep(0.1)
    failures.append(f"left behind: {left}, {metric('duet:connections')} connections")


began = time.time()
before = descriptors()
sizes = []
while True:
    run_round()
    settle()
    sizes.append(memory_mib())
    print(f"{time.time() - began:.0f} s: {sizes[-1]:.0f} MiB, {descriptors()} descriptors, {counts}", flush=True)
    if failures or time.time() - began >= SECONDS:
        break
if descriptors() > before + 1:
    failures.append(f"{before} descriptors before, {descriptors()} after")
# The first round warms caches and allocators up; from then on memory stays.
if len(sizes) > 2 and sizes[-1] > sizes[1] * 1.05 + 8:
    failures.append(f"memory grew: {sizes}")
for failure in failures[:10]:
    print("FAILED:", failure)
sys.exit(1 if failures else 0)
