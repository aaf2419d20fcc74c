"""The formula in Triton, for GPUs; on the host in its interpreter, slowly, for tests."""
