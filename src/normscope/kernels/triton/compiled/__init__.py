"""The loops themselves. Importing one of these modules imports Triton."""
