"""What a step frees on a CPU is kept for the next one."""

import subprocess
import sys

PROGRAM = """
import resource
import numpy as np
from launch.setup import cpu_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        np.ones(10_000_000)  # 80 MB, which malloc gives back at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
cpu_memory.keep_freed()
np.ones(10_000_000)
print(given_back, faults())
"""


def test_temporaries_cost_page_faults_once():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert kept < given_back / 10
