"""For the tests that look at /metrics."""
import urllib.request


def metric(server, name):
    """The first sample of that name; KeyError where there is none. `server`: http://host:port."""
    text = urllib.request.urlopen(f"{server}/metrics", timeout=30).read().decode()
    for line in text.splitlines():
        if line.startswith(name + "{"):
            return float(line.rsplit(" ", 1)[1])
    raise KeyError(name)
