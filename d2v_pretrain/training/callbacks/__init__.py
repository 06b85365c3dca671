"""What watches a run: metrics, health, throughput, progress, probes. All of it reads; none of it
changes a weight."""
