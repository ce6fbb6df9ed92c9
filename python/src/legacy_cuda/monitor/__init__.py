"""Watching GPUs: samples of NVML as Prometheus metrics or CSV, with alert rules and a dashboard.

``sampler`` takes samples in a thread of its own, ``metrics`` makes a page of them, ``server`` hands
out the page that is there. So a scrape never waits for the driver.
"""

#: Seconds between samples, unless told otherwise.
INTERVAL = 5.0
#: The port of utkuozdemir/nvidia_gpu_exporter, whose place this takes.
PORT = 9835
