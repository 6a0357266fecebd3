"""Nothing waits for the device that need not: `pretended_device.py`, in a process that has computed no gradient yet.

PyTorch takes no new device after its first backward pass, and does not forget one.
"""

import subprocess
import sys

from helpers import ROOT


def test_the_checks_on_a_pretended_device_pass():
    checks = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/pretended_device.py"]
    done = subprocess.run(checks, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
