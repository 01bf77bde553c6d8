"""The FP32 file in FP16, BF16 or INT8, calibrated on night pictures."""
