"""Look for known vulnerabilities of the installed packages, where there is an index that knows them.

pip-audit asks the network. Where it gets no answer, or only that a package is not known there, this says so and is no
failure: nothing was found out. A vulnerability is one.
"""

import json
import subprocess
import sys

TIMEOUT_S = 240.0


def main() -> int:
    """Run pip-audit and say what it found."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--timeout", "10"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)  # noqa: S603
        packages = json.loads(run.stdout)["dependencies"]
    except (OSError, ValueError, LookupError, subprocess.TimeoutExpired) as error:
        print(f"pip-audit cannot run here: {error!r}")
        return 0
    found = [package for package in packages if package.get("vulns")]
    unknown = sum("skip_reason" in package for package in packages)
    print(f"{len(packages) - unknown} packages audited, {unknown} not known to the index, {len(found)} vulnerable")
    for package in found:
        print(f"{package['name']} {package['version']}: {', '.join(entry['id'] for entry in package['vulns'])}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
