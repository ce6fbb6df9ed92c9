"""Watching GPUs: samples of NVML as Prometheus metrics or CSV, with alert rules and a dashboard.

``sampler`` takes samples in a thread of its own, ``metrics`` makes a page of them, ``server`` hands
out the page that is there. So a scrape never waits for the driver.
"""
