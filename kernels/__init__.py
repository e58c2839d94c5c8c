"""Operations on tensors, without modules or configurations: SKA, the Mamba-2 scan, and their sequence-parallel forms."""
