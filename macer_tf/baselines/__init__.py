"""What the paper compares MACER with: SmoothAdv (Salman et al. 2019). Gaussian training is MACERModel with lam=0."""
