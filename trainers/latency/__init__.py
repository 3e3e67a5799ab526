"""Latencies: measured on a device, and looked up in tables of measurements."""
