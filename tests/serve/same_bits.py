"""Answers of one server, for comparison with those of others. usage: same_bits.py HOST PORT OUT.json EXPECTED

Asks for a few sampled and greedy completions with log-probabilities, alone and then among 64 other requests,
and writes what came. EXPECTED names what must have happened meanwhile: nothing, overlap, hits or preemptions.
"""
import json
import sys
import threading
import urllib.request

from metrics import metric

HOST, PORT, OUT, EXPECTED = sys.argv[1:5]
PREFIX = "And it came to pass in those days, that there went out a decree from the king, and all the people heard it. " * 2
PROMPTS = ["In the beginning God", PREFIX + "Then said", PREFIX + "And the woman", "The LORD is my"]
METRICS = {"overlap": "duet:steps_overlapped_total", "hits": "vllm:prefix_cache_hits_total",
           "preemptions": "vllm:num_preemptions_total"}


def ask(body):
    data = json.dumps({"model": "kjv", "ignore_eos": True, **body}).encode()
    request = urllib.request.Request(f"http://{HOST}:{PORT}/v1/completions", data)
    with urllib.request.urlopen(request, timeout=120) as answer:
        choice = json.load(answer)["choices"][0]
    return {"text": choice["text"], "logprobs": choice["logprobs"]}


def targets(kind):
    for i, prompt in enumerate(PROMPTS):
        how = {"temperature": 0} if kind == "greedy" else {"temperature": 0.9, "seed": 40 + i}
        yield {"prompt": prompt, "max_tokens": 40, "logprobs": 5, **how}


def answers(kind):
    return [ask(body) for body in targets(kind)]


def among_others(kind):
    result = [None] * len(PROMPTS)
    others = [{"prompt": f"{PREFIX if i % 3 else ''}Chapter {i}:", "max_tokens": 10 + i % 20, "temperature": 1, "seed": i}
              for i in range(64)]
    jobs = [(result, i, body) for i, body in enumerate(targets(kind))] + [(None, 0, body) for body in others]
    jobs = jobs[4:36] + jobs[:4] + jobs[36:]

    def run(into, index, body):
        answer = ask(body)
        if into is not None:
            into[index] = answer

    threads = [threading.Thread(target=run, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return result


alone = {kind: answers(kind) for kind in ("greedy", "sampled")}
for turn in range(2 if EXPECTED == "hits" else 1):  # the first leaves the blocks that the second hits
    for kind, want in alone.items():
        if among_others(kind) != want:
            sys.exit(f"{kind}: among 64 others the answer is another")
        if answers(kind) != want:
            sys.exit(f"{kind}: alone again the answer is another")
if EXPECTED in METRICS and not metric(f"http://{HOST}:{PORT}", METRICS[EXPECTED]) > 0:
    sys.exit(f"no {EXPECTED}: nothing was tested")
with open(OUT, "w") as out:
    json.dump(alone, out)
