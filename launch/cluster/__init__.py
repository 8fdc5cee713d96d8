"""Pod jobs: manifests and commands as plain data. launch/submit.py prints or runs them."""
