"""What /metrics tells, in Prometheus' text form (extra: serve)."""

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

from launch.serving.intake import CUTS
from launch.serving.safety import KINDS

LATENCY = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)  # seconds
CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST


class Telemetry:
    """Counters of one server."""

    def __init__(self):
        self._registry = registry = prometheus_client.CollectorRegistry()
        self.requests = Counter("wamax_requests", "messages by what became of them", ["outcome"], registry=registry)
        for outcome in ("answered", "reset", "seen", "bad_request", "unreadable", "refused", "rate_limited", "failed"):
            self.requests.labels(outcome)
        self.seconds = Histogram("wamax_request_seconds", "from a message to its answer", buckets=LATENCY,
                                 registry=registry)
        self.batch = Histogram("wamax_batch_size", "requests per step of the model", buckets=(1, 2, 4, 8, 16, 32, 64),
                               registry=registry)
        self.queue = Gauge("wamax_queue", "requests that wait", registry=registry)
        self.connections = Gauge("wamax_connections", "open connections", registry=registry)
        self.turned_away = Counter("wamax_turned_away", "connections refused, by reason", ["reason"], registry=registry)
        self.slow = Counter("wamax_slow_clients", "connections dropped because they did not read", registry=registry)
        self.cut = Counter("wamax_connections_cut", "connections cut for what they sent or did not read, by reason",
                           ["reason"], registry=registry)
        for reason in CUTS:
            self.cut.labels(reason)
        self.sessions = Gauge("wamax_sessions", "sessions that hold a window", registry=registry)
        self.evicted = Gauge("wamax_sessions_evicted", "sessions that made room for others", registry=registry)
        self.lost = Counter("wamax_windows_lost", "times that the model failed and all windows were lost",
                            registry=registry)
        self.interventions = Counter("wamax_interventions", "numbers of actions that were changed to be safe, by kind",
                                     ["kind"], registry=registry)
        for kind in KINDS:
            self.interventions.labels(kind)
        self.gap = Histogram("wamax_imagination_gap", "root mean square of observed minus imagined latents",
                             buckets=(0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.5, 2, 4), registry=registry)

    def text(self) -> str:
        """The page."""
        return prometheus_client.generate_latest(self._registry).decode()
