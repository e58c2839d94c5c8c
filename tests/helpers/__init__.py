"""What several tests share: free ports, Ray nodes, worker processes, run folders, small datasets and sweeps."""
