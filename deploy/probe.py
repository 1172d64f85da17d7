"""Asks this container's server whether it is alive (healthz) or admits sessions (readyz); the exit code says so. `python probe.py readyz`"""

import os
import sys
import urllib.error
import urllib.request

request = urllib.request.Request(f"http://127.0.0.1:8000/{sys.argv[1]}", headers={"Authorization": f"Bearer {os.environ['EVERFACE_TOKEN']}"})
try:
    urllib.request.urlopen(request, timeout=2)
except (OSError, urllib.error.URLError) as error:
    sys.exit(f"{sys.argv[1]}: {error}")
