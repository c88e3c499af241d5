"""Block-attention kernels behind one seam."""
