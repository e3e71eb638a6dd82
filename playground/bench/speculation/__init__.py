"""`playground bench speculation`: acceptance and speed-up of speculative decoding, measured beside the formula."""
