"""Every test runs on 8 virtual CPU devices, so that any mesh can be built; compiling counts more than running."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join([
    os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"])
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
