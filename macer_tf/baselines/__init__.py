"""Methods that MACER is compared with: SmoothAdv (Salman et al. 2019), as in the paper; stability training (Li et al.
2019); consistency regularisation (Jeong and Shin 2020); SmoothMix (Jeong et al. 2021); and CAT-RS (Jeong et al. 2023).
Gaussian training is MACERModel with lam=0.
"""
