"""What Prometheus reads of a server."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """One registry a server, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, open files, processor time
        self.accepted = self._counter("jobs_accepted", "Jobs taken in.")
        self.refused = self._counter("jobs_refused", "Requests refused, by error.", "kind")
        self.over = self._counter("jobs_over", "Jobs that ended, by state.", "state")
        self.errors = self._counter("job_errors", "Jobs that failed, by error.", "kind")
        self.policy = self._counter("policy_refusals", "By the content policy.", "when")
        self.images = self._counter("images", "Pictures drawn.")
        self.steps = self._counter("steps", "Denoising steps done, each of one job.")
        self.calls = self._counter("network_calls", "Batches that the network answered.")
        self.stages = Histogram(
            "pixsigma_stage_seconds",
            "How long jobs are in a stage: queued, text, denoising, decoding.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.device = Gauge(
            "pixsigma_device_bytes", "Memory on the GPU; 0 without.", registry=self.registry
        )
        self.device.set_function(device_bytes)
        self.waiting = Gauge("pixsigma_jobs_waiting", "Jobs queued.", registry=self.registry)
        self.running = Gauge("pixsigma_jobs_running", "Jobs drawing.", registry=self.registry)

    def _counter(self, name: str, told: str, *labels: str) -> Counter:
        return Counter(f"pixsigma_{name}", told, labels, registry=self.registry)

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)


def device_bytes() -> int:
    """What PyTorch has taken of the first GPU's memory."""
    import torch

    return torch.cuda.memory_reserved() if torch.cuda.is_initialized() else 0
