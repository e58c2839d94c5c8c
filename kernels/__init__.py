"""Array-in array-out operations: SKA, the Mamba-2 scan, and their sequence-parallel state merge."""
