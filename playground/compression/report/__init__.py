"""`playground compress --report`: what each way to make a model smaller cost in quality and gained in speed."""
