"""Waits up to ten minutes until the address in URL answers."""

import os
import sys
import time
import urllib.error
import urllib.request

for _ in range(200):
    try:
        urllib.request.urlopen(os.environ["URL"], timeout=5).close()
        sys.exit(0)
    except urllib.error.HTTPError:  # it answers
        sys.exit(0)
    except OSError as error:
        print(f"waiting for {os.environ['URL']}: {error}", flush=True)
        time.sleep(3)
sys.exit(1)
