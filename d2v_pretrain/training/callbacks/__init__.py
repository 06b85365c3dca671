"""Callbacks: metrics, health, throughput, progress, probes, saving, stopping.

None of them changes weights, except that ``BadSteps`` may restore those of a checkpoint.
"""
